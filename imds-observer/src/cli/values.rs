//! Option values that come from the record format.

use clap::builder::{PossibleValuesParser, TypedValueParser};

use crate::record::{Code, Kind, Severity};
use crate::redact::Cmdline;

fn one_of<T: Copy + Send + Sync + 'static>(
    all: &'static [T],
    name: fn(T) -> &'static str,
) -> impl TypedValueParser<Value = T> {
    PossibleValuesParser::new(all.iter().map(|value| name(*value))).try_map(move |text| {
        let found = all.iter().find(|value| name(**value) == text);
        found.copied().ok_or_else(|| format!("unknown: {text}"))
    })
}

pub(super) fn kind() -> impl TypedValueParser<Value = Kind> {
    one_of(&Kind::ALL, Kind::as_str)
}

pub(super) fn cmdline() -> impl TypedValueParser<Value = Cmdline> {
    one_of(&Cmdline::ALL, Cmdline::as_str)
}

pub(super) fn code() -> impl TypedValueParser<Value = Code> {
    one_of(Code::ALL, Code::as_str)
}

pub(super) fn severity() -> impl TypedValueParser<Value = Severity> {
    const ALL: [Severity; 4] = [Severity::Info, Severity::Warning, Severity::High, Severity::Critical];
    one_of(&ALL, Severity::as_str)
}
