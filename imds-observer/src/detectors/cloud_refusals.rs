//! Refusals by the metadata services of other clouds, a part of access-forbidden. What a status means is in each protocol's table.

use std::num::NonZeroUsize;

use lru::LruCache;

use super::knowledge::is_probe;
use super::table::{bounded, entry};
use super::window::Bins;
use super::{Client, Context, Details, Limits, Sighting, Sightings, remedy};
use crate::imds::{Refusal, is_token_path};
use crate::record::{Dialect, Exchange, ImdsVersion, Of, Remedy, SECOND, Severity, Time};

/// Clients that are remembered.
const MAX_CLIENTS: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// One client's refusals for one cause.
struct Row {
    cause: &'static str,
    /// Path of the last refused request, without its query.
    path: String,
    recent: Bins<10, { 60 * SECOND }>,
    all: u64,
    first: Time,
}

pub(super) struct CloudRefusals {
    /// Refusals within ten minutes that make a finding.
    least: u64,
    clients: LruCache<u64, Row>,
    evicted: u64,
}

impl CloudRefusals {
    pub(super) fn new(least: u64, limits: &Limits) -> Self {
        Self {
            least: least.max(1),
            clients: bounded(limits.clients(MAX_CLIENTS)),
            evicted: 0,
        }
    }

    pub(super) fn evicted(&self) -> u64 {
        self.evicted
    }

    pub(super) fn observe(
        &mut self,
        status: u16,
        exchange: &Of<'_, Exchange>,
        context: &Context<'_>,
        client: &Client,
        sightings: &mut Sightings<'_>,
    ) {
        let time = exchange.time;
        if (200..300).contains(&status) {
            // An SDK reads other documents with success between the requests that are refused.
            if let Some(row) = self.clients.get_mut(&client.handle)
                && row.path == context.path
            {
                row.recent = Bins::new();
                sightings.clear(&client.key, time);
            }
            return;
        }
        let protocol = context.protocol;
        let known = protocol.refusal(status, context.path, exchange.request.forwarded);
        if known.is_none() && !is_refusal(status, exchange, context) || is_probe(exchange) {
            return;
        }
        let cause = known.map_or("status", |refusal| refusal.cause);
        let new = || Row {
            cause,
            path: String::new(),
            recent: Bins::new(),
            all: 0,
            first: time,
        };
        let row = entry(&mut self.clients, client.handle, &mut self.evicted, new);
        if row.cause != cause || row.recent.total(time) == 0 {
            *row = new();
        }
        context.path.clone_into(&mut row.path);
        row.recent.add(time, 1);
        row.all += 1;
        let (all, first) = (row.all, row.first);
        if row.recent.total(time) < self.least {
            return;
        }
        let sighting = Sighting {
            key: &client.key,
            severity: if cause == "updating" {
                Severity::Info
            } else {
                Severity::Warning
            },
            time,
            count: sightings.counted(&client.key, all, first),
            news: false,
        };
        sightings.report(sighting, || details(status, known, all, exchange, context, client));
    }
}

/// A status that no table explains and that is no other detector's.
fn is_refusal(status: u16, exchange: &Exchange, context: &Context<'_>) -> bool {
    // token-request-refused has those of clients of AWS.
    if exchange.request.dialect == Dialect::Aws && is_token_path(context.path) {
        return false;
    }
    // token-rejected has 401 of requests that should have a token.
    let of_token = context.protocol.token.is_some() && exchange.request.imds_version != Some(ImdsVersion::Token);
    match status {
        401 => !of_token,
        400..=499 => !matches!(status, 404 | 410 | 429),
        _ => false,
    }
}

fn details(
    status: u16,
    known: Option<&Refusal>,
    all: u64,
    exchange: &Of<'_, Exchange>,
    context: &Context<'_>,
    client: &Client,
) -> Details {
    let protocol = context.protocol;
    let subject = context.client_subject();
    let (method, path) = (&exchange.request.method, &exchange.request.path);
    let token = exchange.request.imds_version == Some(ImdsVersion::Token) || protocol.is_token_path(context.path);
    let summary = match known {
        Some(refusal) => format!("requests of {} to {} {}", subject.name, protocol.service, refusal.means),
        None => format!(
            "{} gets status {status} from {} for {} {}",
            subject.name,
            protocol.service,
            method.as_deref().unwrap_or_default(),
            path.as_deref().unwrap_or_default()
        ),
    };
    let remedy = match (known, protocol.token) {
        (Some(refusal), _) => Remedy {
            text: format!("{}{}", refusal.remedy, remedy::documented(protocol)),
            commands: refusal.commands.iter().map(|&command| command.to_owned()).collect(),
        },
        (None, Some(protocol_of_token)) if token => {
            remedy::text(format!("{}{}", protocol_of_token.request, remedy::documented(protocol)))
        }
        _ => remedy::text(format!(
            "Compare the request with the vendor's description: a header or a parameter is missing, or the client isn't allowed to read this path.{}",
            remedy::documented(protocol)
        )),
    };
    Details {
        summary,
        evidence: evidence! {
            "cause": known.map_or("status", |refusal| refusal.cause),
            "dialect": protocol.dialect,
            "status": status,
            "refused": all,
            "method": method,
            "last_path": path,
            "forwarded": exchange.request.forwarded,
            "user_agent": client.user_agent,
        },
        remedy,
        subject,
    }
}
