//! How far answers come: TTLs on arrival against the hops to each workload.

use super::super::history::{Line, Picture};
use super::super::text::counted;
use super::callers::MAX_ROWS;
use super::figure::{SMALL, clean, grouped, round};

/// Forwarding hops that the TTL picture has room for.
pub(super) const MAX_HOPS: u8 = 8;

pub(super) struct Hops {
    pub(super) workload: String,
    pub(super) hops: String,
    pub(super) needed: String,
    pub(super) ttls: String,
    pub(super) lost: String,
    pub(super) verdict: String,
    pub(super) class: &'static str,
    pub(super) picture: Vec<Hop>,
    /// How far an answer comes.
    pub(super) reach: f64,
    pub(super) label: String,
}

/// A place on the way from IMDS to a caller.
pub(super) struct Hop {
    pub(super) x: f64,
    pub(super) class: &'static str,
}

pub(super) fn hops(picture: &Picture) -> Vec<Hops> {
    let lines = picture.lines.iter().filter(|(_, line)| !line.hops.is_empty());
    let farthest = |line: &Line| line.hops.keys().flatten().copied().max();
    let limit = |line: &Line| line.response_ttls.keys().copied().max();
    let shown = lines
        .clone()
        .filter_map(|(_, line)| farthest(line).max(limit(line).map(|limit| limit.saturating_sub(1))))
        .max()
        .unwrap_or(0)
        .clamp(2, MAX_HOPS);
    let mut hops: Vec<(bool, u8, Hops)> = lines
        .map(|(name, line)| {
            let (most, limit) = (farthest(line), limit(line));
            let beyond = most.zip(limit).map(|(hops, limit)| hops >= limit);
            let (verdict, class) = match (beyond, line.lost) {
                (Some(true), _) => ("out of range", "bad"),
                (_, 1..) => ("responses lost", "bad"),
                (Some(false), 0) => ("in range", "fine"),
                (None, 0) => ("unknown", "muted"),
            };
            let x = |hop: u8| round(10.0 + (SMALL - 20.0) * f64::from(hop.min(shown)) / f64::from(shown));
            let picture = (0..=shown).map(|hop| Hop {
                x: x(hop),
                class: match most {
                    Some(most) if most.min(shown) == hop && class == "bad" => "here bad",
                    Some(most) if most.min(shown) == hop => "here",
                    _ => "stop",
                },
            });
            let counts = |of: Vec<(String, u64)>| {
                let parts: Vec<String> = of
                    .iter()
                    .map(|(what, count)| format!("{what}: {}", grouped(*count)))
                    .collect();
                if parts.is_empty() {
                    "–".to_owned()
                } else {
                    parts.join(", ")
                }
            };
            let hop = |hops: &Option<u8>| hops.map_or_else(|| "unknown".to_owned(), |hops| hops.to_string());
            let row = Hops {
                workload: clean(name),
                hops: counts(line.hops.iter().map(|(hops, count)| (hop(hops), *count)).collect()),
                needed: most.map_or_else(|| "–".to_owned(), |most| most.saturating_add(1).to_string()),
                ttls: counts(
                    line.response_ttls
                        .iter()
                        .map(|(ttl, count)| (ttl.to_string(), *count))
                        .collect(),
                ),
                lost: grouped(line.lost),
                verdict: verdict.to_owned(),
                class,
                picture: picture.collect(),
                reach: x(limit.map_or(0, |limit| limit.saturating_sub(1))),
                label: match (most, limit) {
                    (Some(most), Some(limit)) => format!(
                        "{} away; with a TTL of {limit} the response can cross {}",
                        counted(u64::from(most), "hop"),
                        counted(u64::from(limit.saturating_sub(1)), "hop")
                    ),
                    _ => "unknown".to_owned(),
                },
            };
            (class == "bad", most.unwrap_or(0), row)
        })
        .collect();
    hops.sort_by(|a, b| {
        (b.0, b.1)
            .cmp(&(a.0, a.1))
            .then_with(|| a.2.workload.cmp(&b.2.workload))
    });
    hops.truncate(MAX_ROWS);
    hops.into_iter().map(|(_, _, row)| row).collect()
}
