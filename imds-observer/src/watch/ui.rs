//! Choices of the user: the current view, selection, sort order and filter.

use super::input::Action;
use super::state::{Sort, State};
use crate::record::{Code, Finding, Host, Record};
use crate::report::groups::Group;

/// Longest filter that can be typed.
const MAX_FILTER: usize = 64;

/// Where one can be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Screen {
    #[default]
    Overview,
    Process(u64),
    Finding(FindingId),
}

/// The same for all states of one finding.
pub type FindingId = (Host, Code, String);

pub fn finding_id(finding: &Record<Finding>) -> FindingId {
    (finding.host.clone(), finding.code, finding.subject.key.clone())
}

fn has(group: &Group<'_>, id: &FindingId) -> bool {
    group.findings.iter().any(|finding| finding_id(finding) == *id)
}

/// The half of the overview that the arrows move in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pane {
    #[default]
    Processes,
    Findings,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Ui {
    pub screen: Screen,
    pub pane: Pane,
    pub help: bool,
    pub help_scroll: usize,
    pub sort: Sort,
    pub filter: String,
    /// The filter is being typed.
    pub typing: bool,
    pub paused: bool,
    pub process: Option<u64>,
    pub finding: Option<FindingId>,
    /// First line of a detail that is shown.
    pub scroll: usize,
    /// File that the trace goes to.
    pub writing: Option<String>,
    /// Latest message.
    pub message: String,
}

/// Action for the caller after a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    None,
    Quit,
    Pause,
    Write,
    /// To the clipboard.
    Copy(String),
}

impl Ui {
    /// `last`: the highest useful scroll of what is shown, in lines.
    pub fn apply(&mut self, action: Action, state: &State, last: usize) -> Effect {
        self.message.clear();
        match action {
            Action::Move(lines) if self.help => {
                self.help_scroll = self.help_scroll.min(last).saturating_add_signed(lines).min(last);
                return Effect::None;
            }
            Action::Quit => {}
            _ if self.help => {
                self.help = false;
                return Effect::None;
            }
            _ => {}
        }
        match action {
            Action::Quit => return Effect::Quit,
            Action::Help => (self.help, self.help_scroll) = (true, 0),
            Action::Pause => {
                self.paused = !self.paused;
                return Effect::Pause;
            }
            Action::Write => return Effect::Write,
            Action::Sort => {
                self.sort = self.sort.next();
                self.message = format!("sorted by {}", self.sort.as_str());
            }
            Action::Filter => {
                self.typing = true;
                self.screen = Screen::Overview;
            }
            Action::Type(character) if self.filter.chars().count() < MAX_FILTER => self.filter.push(character),
            Action::Type(_) => {}
            Action::Erase => {
                self.filter.pop();
            }
            Action::Done => self.typing = false,
            Action::Back if self.typing => {
                self.typing = false;
                self.filter.clear();
            }
            Action::Back if self.screen == Screen::Overview => self.filter.clear(),
            Action::Back => self.open(Screen::Overview),
            Action::Pane => {
                self.pane = match self.pane {
                    Pane::Processes => Pane::Findings,
                    Pane::Findings => Pane::Processes,
                };
            }
            Action::Enter => self.enter(state),
            Action::Move(lines) => self.step(lines, state, last),
            Action::Copy => return self.copy(state),
        }
        Effect::None
    }

    /// The selected process: what was chosen if it is still there, else the first.
    pub fn selected_process(&self, state: &State) -> Option<u64> {
        let keys = self.process_keys(state);
        self.process
            .filter(|key| keys.contains(key))
            .or_else(|| keys.first().copied())
    }

    /// As for processes.
    pub fn selected_group<'a>(&self, state: &'a State) -> Option<Group<'a>> {
        let mut groups = state.groups(&self.filter);
        let at = self.selected_of(&groups);
        (at < groups.len()).then(|| groups.swap_remove(at))
    }

    /// Index of the selected group.
    pub fn selected_of(&self, groups: &[Group<'_>]) -> usize {
        let chosen = |id| groups.iter().position(|group| has(group, id));
        self.finding.as_ref().and_then(chosen).unwrap_or(0)
    }

    /// The findings whose remedy is meant: those shown, else the selected ones.
    pub fn group_in_view<'a>(&self, state: &'a State) -> Option<Group<'a>> {
        match &self.screen {
            Screen::Finding(id) => state.groups("").into_iter().find(|group| has(group, id)),
            _ => self.selected_group(state),
        }
    }

    fn process_keys(&self, state: &State) -> Vec<u64> {
        let workloads = state.workloads(self.sort, &self.filter);
        let rows = workloads.iter().flat_map(|workload| &workload.rows);
        rows.map(|(row, _)| row.key).collect()
    }

    fn open(&mut self, screen: Screen) {
        self.screen = screen;
        self.scroll = 0;
    }

    fn enter(&mut self, state: &State) {
        if self.screen != Screen::Overview {
            return;
        }
        match self.pane {
            Pane::Processes => {
                if let Some(key) = self.selected_process(state) {
                    self.process = Some(key);
                    self.open(Screen::Process(key));
                }
            }
            Pane::Findings => {
                if let Some(group) = self.selected_group(state) {
                    let id = finding_id(group.first());
                    self.finding = Some(id.clone());
                    self.open(Screen::Finding(id));
                }
            }
        }
    }

    fn step(&mut self, lines: isize, state: &State, last: usize) {
        let moved = |at: usize, last: usize| at.saturating_add_signed(lines).min(last);
        if self.screen != Screen::Overview {
            self.scroll = moved(self.scroll.min(last), last);
            return;
        }
        match self.pane {
            Pane::Processes => {
                let keys = self.process_keys(state);
                let selected = self.selected_process(state);
                let at = keys.iter().position(|key| Some(*key) == selected).unwrap_or(0);
                self.process = keys.get(moved(at, keys.len().saturating_sub(1))).copied();
            }
            Pane::Findings => {
                let groups = state.groups(&self.filter);
                let at = self.selected_of(&groups);
                let chosen = groups.get(moved(at, groups.len().saturating_sub(1)));
                self.finding = chosen.map(|group| finding_id(group.first()));
            }
        }
    }

    fn copy(&mut self, state: &State) -> Effect {
        let Some(group) = self.group_in_view(state) else {
            "no finding selected: no remedy to copy".clone_into(&mut self.message);
            return Effect::None;
        };
        let remedy = group.remedy();
        let text = if remedy.commands.is_empty() {
            remedy.text.clone()
        } else {
            remedy.commands.join("\n")
        };
        self.message = format!(
            "sent the remedy of {} to the clipboard (not every terminal supports this)",
            group.code()
        );
        Effect::Copy(text)
    }
}
