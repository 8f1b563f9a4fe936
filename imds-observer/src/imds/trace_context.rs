//! Which trace of an application does a request belong to? The ids of tracing libraries, read from the request's headers.

use crate::http;

/// <https://www.w3.org/TR/trace-context/>, <https://develop.sentry.dev/sdk/foundations/trace-propagation/>, and Datadog's own header.
const TRACEPARENT: &str = "traceparent";
const SENTRY: &str = "sentry-trace";
const DATADOG: &str = "x-datadog-trace-id";

/// Hexadecimal digits of a W3C or Sentry trace id.
const TRACE_DIGITS: usize = 32;
/// Hexadecimal digits of a span ID.
const SPAN_DIGITS: usize = 16;

/// The ids that a request carries.
#[derive(Default)]
pub(super) struct TraceContext {
    w3c: Option<String>,
    sentry: Option<String>,
    datadog: Option<String>,
}

impl TraceContext {
    /// `false`: the header is none of these. A value of another form is ignored, and no byte of it is kept.
    pub(super) fn note(&mut self, header: &http::Header<'_>) -> bool {
        let (id, read): (_, fn(&str) -> Option<&str>) = if header.is(TRACEPARENT) {
            (&mut self.w3c, w3c)
        } else if header.is(SENTRY) {
            (&mut self.sentry, sentry)
        } else if header.is(DATADOG) {
            (&mut self.datadog, datadog)
        } else {
            return false;
        };
        if header.complete && id.is_none() {
            let value = std::str::from_utf8(&header.value).ok();
            *id = value.and_then(read).map(str::to_owned);
        }
        true
    }

    /// The most standard of them: 32 hexadecimal digits, or Datadog's decimal number.
    pub(super) fn id(self) -> Option<String> {
        self.w3c.or(self.sentry).or(self.datadog)
    }
}

/// `VERSION-TRACE-SPAN-FLAGS`; later versions may append fields.
fn w3c(value: &str) -> Option<&str> {
    let mut parts = value.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let known =
        is_hex(version, 2) && version != "ff" && is_hex(flags, 2) && (version != "00" || parts.next().is_none());
    (known && is_id(trace, TRACE_DIGITS) && is_id(span, SPAN_DIGITS)).then_some(trace)
}

/// `TRACE-SPAN` or `TRACE-SPAN-SAMPLED`.
fn sentry(value: &str) -> Option<&str> {
    let mut parts = value.split('-');
    let (trace, span) = (parts.next()?, parts.next()?);
    let sampled = parts.next().is_none_or(|sampled| matches!(sampled, "" | "0" | "1"));
    (sampled && parts.next().is_none() && is_id(trace, TRACE_DIGITS) && is_id(span, SPAN_DIGITS)).then_some(trace)
}

/// A decimal number of 64 bits.
fn datadog(value: &str) -> Option<&str> {
    let digits = value.bytes().all(|byte| byte.is_ascii_digit());
    (digits && value.parse::<u64>().is_ok_and(|id| id != 0)).then_some(value)
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// All zeros is no id.
fn is_id(text: &str, digits: usize) -> bool {
    is_hex(text, digits) && text.bytes().any(|byte| byte != b'0')
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    #[rstest]
    #[case("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", Some(TRACE))]
    #[case("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more", Some(TRACE))]
    #[case("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more", None)]
    #[case("ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", None)]
    #[case("00-00000000000000000000000000000000-00f067aa0ba902b7-01", None)]
    #[case("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", None)]
    #[case("AQAEAHnMadeUpTokenOfImds==", None)]
    #[case("", None)]
    fn of_w3c(#[case] value: &str, #[case] id: Option<&str>) {
        assert_eq!(w3c(value), id);
    }

    #[rstest]
    #[case("4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7", Some(TRACE))]
    #[case("4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1", Some(TRACE))]
    #[case("4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-secret", None)]
    #[case("4bf92f3577b34da6a3ce929d0e0e4736", None)]
    fn of_sentry(#[case] value: &str, #[case] id: Option<&str>) {
        assert_eq!(sentry(value), id);
    }

    #[rstest]
    #[case("1234567890123456789", Some("1234567890123456789"))]
    #[case("18446744073709551616", None)]
    #[case("0", None)]
    #[case("+5", None)]
    #[case("12ab", None)]
    fn of_datadog(#[case] value: &str, #[case] id: Option<&str>) {
        assert_eq!(datadog(value), id);
    }
}
