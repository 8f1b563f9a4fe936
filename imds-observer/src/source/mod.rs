//! Where events come from. Live kernel events and packets from a capture become the same [`Event`]s, so everything behind is one pipeline.

mod event;
mod live;

pub use imds_observer_common::{Direction, ProcessKey};

pub use event::{
    ConnectAttempt, ConnectResult, Event, FlowId, IcmpError, InterfaceSample, Packet, PacketDrop, Sender, SocketChange,
    SocketState, Vantage,
};
pub use live::LiveSource;
