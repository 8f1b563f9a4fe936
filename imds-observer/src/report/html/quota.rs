//! Packets per second against the link-local quota.

use std::fmt::Write as _;

use super::super::history::Picture;
use super::super::text::counted;
use super::figure::{TALL, WIDTH, clean, grouped, round};
use crate::record::InterfaceSummary;

/// Packets per second and interface (see imds quota in `docs/`): the line that the quota picture is drawn against.
pub(super) const QUOTA: u64 = 1024;

pub(super) struct Peaks {
    pub(super) interface: String,
    pub(super) caption: String,
    pub(super) points: String,
    pub(super) area: String,
}

/// The picture's upper edge: the quota, or what goes beyond it.
pub(super) fn quota_top(picture: &Picture) -> u64 {
    let peak = picture.quota.values().flatten().copied().max().unwrap_or(0);
    peak.max(QUOTA).saturating_mul(11) / 10
}

pub(super) fn quota_y(packets: u64, top: u64) -> f64 {
    round(TALL - TALL * packets as f64 / top.max(1) as f64)
}

pub(super) fn quota(picture: &Picture, interfaces: &[InterfaceSummary]) -> Vec<Peaks> {
    let top = quota_top(picture);
    let step = WIDTH / picture.shown() as f64;
    let drawn = picture.quota.iter().map(|(name, peaks)| {
        let mut points = String::new();
        for (at, packets) in peaks.iter().enumerate() {
            let (x, y) = (round(at as f64 * step), quota_y(*packets, top));
            let _ = write!(points, "{x},{y} {},{y} ", round((at + 1) as f64 * step));
        }
        let end = round(peaks.len() as f64 * step);
        let peak = peaks.iter().copied().max().unwrap_or(0);
        let mut caption = format!(
            "at most {} packets/s = {:.0} % of the quota",
            grouped(peak),
            peak as f64 * 100.0 / QUOTA as f64
        );
        if let Some(interface) = interfaces.iter().find(|interface| interface.name == *name) {
            let _ = write!(
                caption,
                "; {} out, {} in",
                counted(interface.egress_packets, "packet"),
                grouped(interface.ingress_packets)
            );
            match interface.allowance_exceeded {
                Some(count) => {
                    let _ = write!(caption, "; {} dropped over the quota", grouped(count));
                }
                None => caption.push_str("; the driver has no counter for drops over the quota"),
            }
        }
        Peaks {
            interface: clean(name),
            caption,
            area: format!("0,{TALL} {points}{end},{TALL}"),
            points,
        }
    });
    drawn.collect()
}
