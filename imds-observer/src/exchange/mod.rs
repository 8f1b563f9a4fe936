//! Pairs requests with responses on one connection and tells what became of each.

mod facts;

pub use facts::{ConnectFacts, DropFacts, ExchangeFacts, Fact};
