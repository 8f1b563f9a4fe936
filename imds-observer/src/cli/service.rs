//! What a service manager and its operator expect: readiness, signs of life, and a configuration that is read again on SIGHUP.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use sd_notify::NotifyState;
use signal_hook::consts::SIGHUP;

use super::observe::{SelectArgs, Settings};
use crate::config::Config;
use crate::pipeline::Pipeline;

/// Looks in on the pipeline each time it comes round.
pub(super) struct Service {
    hangup: Arc<AtomicBool>,
    select: SelectArgs,
    /// What is in force.
    config: Config,
    /// How often systemd wants a sign of life.
    watchdog: Option<Duration>,
    beaten: Instant,
}

impl Service {
    pub(super) fn start(select: SelectArgs, settings: &Settings) -> anyhow::Result<Self> {
        let hangup = Arc::new(AtomicBool::new(false));
        if select.has_config() {
            signal_hook::flag::register(SIGHUP, Arc::clone(&hangup)).context("take over SIGHUP")?;
        }
        Ok(Self {
            hangup,
            select,
            config: settings.config.clone(),
            // Twice as often as is asked, as systemd's manual advises.
            watchdog: sd_notify::watchdog_enabled().map(|period| period / 2),
            beaten: Instant::now(),
        })
    }

    /// Whether SIGHUP means that: without a file to read it means the end, as for any program.
    pub(super) fn reloads(&self) -> bool {
        self.select.has_config()
    }

    pub(super) fn tick(&mut self, pipeline: &mut Pipeline) {
        if let Some(period) = self.watchdog
            && self.beaten.elapsed() >= period
        {
            self.beaten = Instant::now();
            notify(&[NotifyState::Watchdog]);
        }
        if self.hangup.swap(false, Ordering::Relaxed) {
            self.reload(pipeline);
        }
    }

    /// A file that can't be read changes nothing.
    fn reload(&mut self, pipeline: &mut Pipeline) {
        if let Ok(now) = NotifyState::monotonic_usec_now() {
            notify(&[NotifyState::Reloading, now]);
        }
        match self.select.settings() {
            Err(error) => tracing::error!("the old configuration stays in force: {error:#}"),
            Ok(Settings { config, filter, .. }) => {
                let waiting = needs_restart(&self.config, &config);
                pipeline.reconfigure(filter, config.detectors.clone());
                self.config = config;
                if waiting.is_empty() {
                    tracing::info!("the configuration was read again");
                } else {
                    tracing::warn!(
                        "the configuration was read again; {} takes effect at the next start",
                        waiting.join(", ")
                    );
                }
            }
        }
        notify(&[NotifyState::Ready]);
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        notify(&[NotifyState::Stopping]);
    }
}

/// The hooks are attached.
pub(super) fn tell_ready(uplinks: usize) {
    let status = format!("observing, {uplinks} uplinks");
    notify(&[NotifyState::Ready, NotifyState::Status(&status)]);
}

/// Keys that were changed and are only looked at when observation begins.
fn needs_restart(before: &Config, after: &Config) -> Vec<&'static str> {
    [
        ("host", before.host != after.host),
        ("interfaces", before.interfaces != after.interfaces),
        ("cgroup", before.cgroup != after.cgroup),
        ("endpoints", before.endpoints != after.endpoints),
        ("host_root", before.host_root != after.host_root),
        ("interval", before.interval != after.interval),
        ("records", before.records != after.records),
        ("limits", before.limits != after.limits),
        ("unconfined", before.unconfined != after.unconfined),
        ("otlp", before.otlp != after.otlp),
    ]
    .into_iter()
    .filter_map(|(key, changed)| changed.then_some(key))
    .collect()
}

/// Without a service manager this does nothing.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("tell the service manager: {error}");
    }
}
