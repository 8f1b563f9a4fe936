//! Which service an observation is about, and which detectors that concerns.

use super::Observation;
use crate::imds::{Protocol, endpoint_of};
use crate::record::Dialect;

/// Kind of the requested service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asks {
    /// IMDS of AWS, or something that speaks like it.
    Imds,
    /// Another cloud's metadata service with session tokens.
    Tokens,
    /// Another cloud's metadata service.
    Cloud,
    /// An agent of this host: EKS Pod Identity, ECS.
    Agent,
}

impl Asks {
    pub(super) const ALL: [Self; 4] = [Self::Imds, Self::Tokens, Self::Cloud, Self::Agent];
}

/// The services that a detector is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// IMDS of AWS alone.
    Imds,
    /// Metadata services with session tokens.
    Tokens,
    /// The metadata service of any cloud.
    Clouds,
    /// Agents of the host alone.
    Agents,
    All,
}

impl Scope {
    pub(super) fn covers(self, asks: Asks) -> bool {
        match self {
            Self::Imds => asks == Asks::Imds,
            Self::Tokens => matches!(asks, Asks::Imds | Asks::Tokens),
            Self::Clouds => asks != Asks::Agent,
            Self::Agents => asks == Asks::Agent,
            Self::All => true,
        }
    }
}

/// The kind of service that an observation is about on a host of this cloud, and its protocol.
///
/// EC2's tree is served by other clouds too, without tokens and roles of EC2: there their own protocol counts.
pub(super) fn asks(observation: &Observation<'_>, cloud: Dialect) -> (Asks, &'static Protocol) {
    let of_cloud = if cloud == Dialect::Unknown { Dialect::Aws } else { cloud };
    let connection = match observation {
        Observation::Exchange(exchange) => {
            let dialect = exchange.request.dialect;
            if exchange.endpoint().is_agent() {
                return (Asks::Agent, dialect.protocol());
            }
            return match dialect {
                Dialect::Aws | Dialect::Unknown if of_cloud == Dialect::Aws => (Asks::Imds, Dialect::Aws.protocol()),
                Dialect::Aws | Dialect::Unknown => (Asks::Cloud, of_cloud.protocol()),
                // These clouds serve OpenStack's tree beside their own.
                Dialect::Openstack if matches!(of_cloud, Dialect::Oracle | Dialect::Huawei) => {
                    (Asks::Cloud, of_cloud.protocol())
                }
                _ if dialect.protocol().token.is_some() => (Asks::Tokens, dialect.protocol()),
                _ => (Asks::Cloud, dialect.protocol()),
            };
        }
        Observation::Connect(connect) => &connect.connection,
        Observation::Drop(drop) => &drop.connection,
        // The quota is one of AWS.
        Observation::Interface(_) if of_cloud == Dialect::Aws => return (Asks::Imds, of_cloud.protocol()),
        Observation::Interface(_) => return (Asks::Cloud, of_cloud.protocol()),
    };
    if endpoint_of(&connection.remote).is_agent() {
        (Asks::Agent, of_cloud.protocol())
    } else if of_cloud == Dialect::Aws {
        (Asks::Imds, of_cloud.protocol())
    } else {
        (Asks::Cloud, of_cloud.protocol())
    }
}
