//! A process's last exchanges on a time line: what it asked, how long it waited, what died on the way.
//!
//! Requests that follow each other closely are one episode with a scale of its own; the newest episode comes first.

use ratatui::style::Style;
use ratatui::text::{Line, Span};

use super::{BOLD, DIM, Theme, clip, clock_ms, safe};
use crate::record::{
    Body, Connect, Exchange, ExchangeOutcome, ImdsVersion, Of, PacketDirection, PacketDrop, Record, SECOND, Time,
};
use crate::report::text::span;
use crate::watch::state::Row;

/// Silence that ends an episode.
const GAP_NS: u64 = 2 * SECOND;

pub(super) fn lines(row: &Row, theme: Theme, width: u16) -> Vec<Line<'static>> {
    let mut records: Vec<&Record> = row.last.iter().map(AsRef::as_ref).collect();
    records.sort_by_key(|record| record.time);
    let mut episodes: Vec<Vec<&Record>> = Vec::new();
    let mut end = Time::default();
    for record in records {
        match episodes.last_mut() {
            Some(episode) if record.time.since(end) < GAP_NS => episode.push(record),
            _ => episodes.push(vec![record]),
        }
        end = end.max(record.settled());
    }
    let mut lines = Vec::new();
    for episode in episodes.iter().rev() {
        episode_lines(episode, theme, usize::from(width), &mut lines);
    }
    lines
}

fn episode_lines(episode: &[&Record], theme: Theme, width: usize, lines: &mut Vec<Line<'static>>) {
    let Some(from) = episode.first().map(|record| record.time) else {
        return;
    };
    let to = episode.iter().map(|record| record.settled()).max().unwrap_or(from);
    let scale = Scale {
        from,
        span: to.since(from).max(1),
        width: if width < 60 { 0 } else { (width - 58).clamp(8, 40) },
    };
    let count = episode
        .iter()
        .filter(|record| matches!(record.body, Body::Exchange(_)))
        .count();
    lines.push(Line::styled(
        format!(
            " {}  {count} exchange{} in {}",
            clock_ms(from),
            if count == 1 { "" } else { "s" },
            span(to.since(from))
        ),
        BOLD,
    ));
    for record in episode {
        match &record.body {
            Body::Exchange(exchange) => exchange_lines(record.with(exchange), &scale, theme, width, lines),
            Body::Connect(connect) => lines.push(connect_line(record.with(connect), &scale, theme, width)),
            Body::Drop(drop) => lines.push(drop_line(record.with(drop), &scale, theme)),
            _ => {}
        }
    }
}

struct Scale {
    from: Time,
    span: u64,
    /// Cells of the bar; 0: no room for one.
    width: usize,
}

impl Scale {
    fn offset(&self, time: Time) -> String {
        format!("{:>+9.3} ", time.since(self.from) as f64 / SECOND as f64)
    }

    /// Answered requests are solid, unanswered ones hollow.
    fn bar(&self, from: Time, ns: u64, answered: bool) -> String {
        if self.width == 0 {
            return String::new();
        }
        let cell = |ns: u64| (u128::from(ns) * self.width as u128 / u128::from(self.span)) as usize;
        let start = cell(from.since(self.from)).min(self.width - 1);
        let length = cell(ns).clamp(1, self.width - start);
        let mark = if answered { "█" } else { "░" };
        let bar = " ".repeat(start) + &mark.repeat(length);
        format!("{bar:<width$} ", width = self.width)
    }
}

fn exchange_lines(
    exchange: Of<'_, Exchange>,
    scale: &Scale,
    theme: Theme,
    width: usize,
    lines: &mut Vec<Line<'static>>,
) {
    let (request, response) = (&exchange.request, exchange.response.as_ref());
    let answered = exchange.outcome == ExchangeOutcome::Answered;
    let waited = exchange.waited_ns.or(exchange.latency_ns);
    let status = response.and_then(|response| response.status);
    let room = width.saturating_sub(12 + scale.width + 18).clamp(10, 40);
    let what = match request.imds_version {
        Some(ImdsVersion::Token) => "PUT token".to_owned(),
        version => {
            let path = request.path.as_deref().unwrap_or("(no HTTP)");
            let short = path.strip_prefix("/latest/meta-data/").unwrap_or(path);
            let mark = if version == Some(ImdsVersion::V1) { " v1" } else { "" };
            let method = request.method.as_deref().unwrap_or("?");
            format!(
                "{} {}{mark}",
                safe(method),
                clip(&safe(short), room.saturating_sub(method.len() + 1 + mark.len()))
            )
        }
    };
    let result = match (answered, status) {
        (true, Some(status)) => status.to_string(),
        _ => exchange.outcome.as_str().to_owned(),
    };
    let bad = !answered && exchange.outcome != ExchangeOutcome::Open
        || status.is_some_and(|status| status >= 400 && status != 404);
    lines.push(Line::from(vec![
        Span::styled(scale.offset(exchange.time), DIM),
        Span::raw(format!("{:<room$} ", clip(&what, room))),
        Span::raw(scale.bar(exchange.time, waited.unwrap_or(0), answered)),
        Span::styled(format!("{result:<9}"), if bad { theme.bad() } else { Style::new() }),
        Span::raw(waited.map_or_else(String::new, |waited| format!(" {}", span(waited)))),
    ]));
    let more = remarks(&exchange);
    if !more.is_empty() {
        lines.push(Line::styled(
            clip(&format!("{:11}└ {}", "", more.join(", ")), width),
            theme.bad(),
        ));
    }
}

/// Remarks on an exchange: a response that arrived and was not delivered, and retransmissions.
fn remarks(exchange: &Exchange) -> Vec<String> {
    let mut remarks = Vec::new();
    let times = |count: u32| {
        if count == 1 {
            "once".to_owned()
        } else {
            format!("{count} times")
        }
    };
    if exchange.request.retransmits > 0 {
        remarks.push(format!("request retransmitted {}", times(exchange.request.retransmits)));
    }
    let Some(response) = &exchange.response else {
        return remarks;
    };
    if exchange.outcome == ExchangeOutcome::Lost {
        let status = response
            .status
            .map_or_else(|| "answer".to_owned(), |status| status.to_string());
        let ttl = response.ttl.map_or_else(String::new, |ttl| format!(" with TTL {ttl}"));
        let after = exchange
            .latency_ns
            .map_or_else(String::new, |latency| format!(" after {}", span(latency)));
        remarks.push(format!("{status} arrived{ttl}{after}, not delivered"));
    }
    if let Some(icmp) = response.icmp {
        remarks.push(format!("ICMP {icmp} sent"));
    }
    if response.retransmits > 0 {
        remarks.push(format!("retransmitted {}", times(response.retransmits)));
    }
    if exchange.request.forwarded {
        remarks.push("through a proxy".to_owned());
    }
    remarks
}

fn connect_line(connect: Of<'_, Connect>, scale: &Scale, theme: Theme, width: usize) -> Line<'static> {
    let room = width.saturating_sub(12 + scale.width + 18).clamp(10, 40);
    let what = format!("connect {}", safe(&connect.connection.remote));
    let mut result = connect.outcome.as_str().to_owned();
    if let Some(dropped) = &connect.dropped {
        result = format!("{result}: {}", safe(&dropped.to_string()));
    }
    if let Some(icmp) = connect.icmp {
        result = format!("{result}, ICMP {icmp}");
    }
    Line::from(vec![
        Span::styled(scale.offset(connect.time), DIM),
        Span::raw(format!("{:<room$} ", clip(&what, room))),
        Span::raw(scale.bar(connect.time, connect.elapsed_ns, false)),
        Span::styled(format!("{result:<9}"), theme.bad()),
        Span::raw(format!(" {}", span(connect.elapsed_ns))),
    ])
}

fn drop_line(drop: Of<'_, PacketDrop>, scale: &Scale, theme: Theme) -> Line<'static> {
    let what = match drop.direction {
        PacketDirection::Request => "request",
        PacketDirection::Response => "response",
    };
    let ttl = drop.ttl.map_or_else(String::new, |ttl| format!(", TTL {ttl}"));
    let reason = safe(drop.reason.as_deref().unwrap_or("no reason recorded"));
    let location = drop
        .location
        .as_deref()
        .map_or_else(String::new, |location| format!(" in {}", safe(location)));
    Line::from(vec![
        Span::styled(scale.offset(drop.time), DIM),
        Span::styled(format!("✗ {what} dropped{location}: {reason}{ttl}"), theme.bad()),
    ])
}
