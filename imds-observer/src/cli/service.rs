//! Integration with a service manager: readiness, watchdog, and reloading the configuration on SIGHUP.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use sd_notify::NotifyState;
use signal_hook::consts::SIGHUP;

use super::observe::{SelectArgs, Settings};
use crate::config::Config;
use crate::pipeline::Pipeline;

/// Runs in every iteration of the pipeline loop.
pub(super) struct Service {
    hangup: Arc<AtomicBool>,
    select: SelectArgs,
    /// The active configuration.
    config: Config,
    /// Interval of watchdog messages.
    watchdog: Option<Duration>,
    beaten: Instant,
}

impl Service {
    pub(super) fn start(select: SelectArgs, settings: &Settings) -> anyhow::Result<Self> {
        let hangup = Arc::new(AtomicBool::new(false));
        if select.has_config() {
            signal_hook::flag::register(SIGHUP, Arc::clone(&hangup)).context("handle SIGHUP")?;
        }
        Ok(Self {
            hangup,
            select,
            config: settings.config.clone(),
            // systemd's manual recommends half of the timeout.
            watchdog: sd_notify::watchdog_enabled().map(|period| period / 2),
            beaten: Instant::now(),
        })
    }

    /// Whether SIGHUP reloads. Without a configuration file it ends the program, as by default.
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

    /// If the file can't be read, the configuration stays the same.
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
                    tracing::info!("configuration reloaded");
                } else {
                    tracing::warn!(
                        "configuration reloaded; {} takes effect at the next start",
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
pub(super) fn notify_ready(uplinks: usize) {
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
        tracing::debug!("notify the service manager: {error}");
    }
}
