//! Assertions about a story: `no v1`, `credentials obtained`, `waited < 1s`. docs/exec.md has the grammar.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use super::Story;
use crate::quantity::Span;
use crate::record::{Body, Code, ExchangeOutcome, ImdsVersion, Severity};
use crate::report::text::span;

/// One assertion, as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assertion {
    text: String,
    claim: Claim,
}

/// Several assertions between commas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assertions(pub Vec<Assertion>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Claim {
    Credentials(bool),
    Count(Count, Comparison, u64),
    Time(Measure, Comparison, u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Count {
    Requests,
    Version(ImdsVersion),
    Status(u16),
    Lost,
    Failed,
    Findings(Option<Severity>),
    Code(Code),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Measure {
    Waited,
    /// Percentile of the latencies.
    Latency(u8),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Equal,
    NotEqual,
    Less,
    AtMost,
    Greater,
    AtLeast,
}

/// Result of an assertion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Checked {
    pub assertion: String,
    pub holds: bool,
    /// The actual value.
    pub actual: String,
}

const COMPARISONS: [(&str, Comparison); 7] = [
    // Longer ones first.
    ("==", Comparison::Equal),
    ("!=", Comparison::NotEqual),
    ("<=", Comparison::AtMost),
    (">=", Comparison::AtLeast),
    ("=", Comparison::Equal),
    ("<", Comparison::Less),
    (">", Comparison::Greater),
];

impl Comparison {
    fn holds(self, left: u64, right: u64) -> bool {
        match self {
            Self::Equal => left == right,
            Self::NotEqual => left != right,
            Self::Less => left < right,
            Self::AtMost => left <= right,
            Self::Greater => left > right,
            Self::AtLeast => left >= right,
        }
    }
}

impl FromStr for Assertions {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split(',').map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

impl FromStr for Assertion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let claim = claim(&text).map_err(|why| format!("`{text}`: {why}"))?;
        Ok(Self { text, claim })
    }
}

fn claim(text: &str) -> Result<Claim, String> {
    match text {
        "" => return Err("an assertion is missing".to_owned()),
        "credentials" | "credentials obtained" | "some credentials" => return Ok(Claim::Credentials(true)),
        "no credentials" | "no credentials obtained" => return Ok(Claim::Credentials(false)),
        _ => {}
    }
    if let Some(counted) = text.strip_prefix("no ") {
        return Ok(Claim::Count(count(counted)?, Comparison::Equal, 0));
    }
    if let Some(counted) = text.strip_prefix("some ") {
        return Ok(Claim::Count(count(counted)?, Comparison::Greater, 0));
    }
    let found = COMPARISONS
        .iter()
        .filter_map(|(sign, comparison)| Some((text.find(sign)?, sign, *comparison)))
        .min_by_key(|(at, sign, _)| (*at, std::cmp::Reverse(sign.len())));
    let Some((at, sign, comparison)) = found else {
        return Err(
            "expected `no THING`, `some THING`, `THING < NUMBER`, `credentials obtained` or `no credentials`"
                .to_owned(),
        );
    };
    let (left, right) = (text[..at].trim(), text[at + sign.len()..].trim());
    if let Some(measure) = measure(left) {
        let Span(wanted) = right.parse()?;
        return Ok(Claim::Time(measure, comparison, wanted.as_nanos() as u64));
    }
    let counted = count(left)?;
    let wanted = right.parse().map_err(|_| format!("`{right}` is not a number"))?;
    Ok(Claim::Count(counted, comparison, wanted))
}

fn measure(text: &str) -> Option<Measure> {
    Some(match text {
        "waited" => Measure::Waited,
        "latency" | "latency-max" => Measure::Latency(100),
        "latency-p50" => Measure::Latency(50),
        "latency-p90" => Measure::Latency(90),
        "latency-p99" => Measure::Latency(99),
        _ => return None,
    })
}

fn count(text: &str) -> Result<Count, String> {
    const SEVERITIES: [Severity; 4] = [Severity::Info, Severity::Warning, Severity::High, Severity::Critical];
    let severity = |name: &str| SEVERITIES.into_iter().find(|severity| severity.as_str() == name);
    if let Some(status) = text.strip_prefix("status-") {
        let status = status.parse().ok().filter(|status| (100..600).contains(status));
        return status
            .map(Count::Status)
            .ok_or_else(|| format!("`{text}` is not a status such as status-404"));
    }
    if let Some(version) = ImdsVersion::ALL.into_iter().find(|version| version.as_str() == text) {
        return Ok(Count::Version(version));
    }
    if let Some(code) = Code::ALL.iter().find(|code| code.as_str() == text) {
        return Ok(Count::Code(*code));
    }
    match text {
        "requests" => Ok(Count::Requests),
        "lost" => Ok(Count::Lost),
        "failed" => Ok(Count::Failed),
        "findings" => Ok(Count::Findings(None)),
        _ => match text.strip_prefix("findings-").and_then(severity) {
            Some(severity) => Ok(Count::Findings(Some(severity))),
            None if measure(text).is_some() => Err(format!("`{text}` is a time: compare it, as in `{text} < 1s`")),
            None => Err(format!(
                "`{text}` is not known (requests, token, v1, v2, other, lost, failed, status-NNN, findings, \
                 findings-SEVERITY, a finding code, waited, latency, latency-p50, -p90, -p99)"
            )),
        },
    }
}

impl fmt::Display for Assertion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Assertion {
    pub(super) fn judge(&self, story: &Story) -> Checked {
        let (holds, actual) = match self.claim {
            Claim::Credentials(wanted) => {
                let obtained = story.credentials_obtained();
                let actual = if obtained { "obtained" } else { "not obtained" };
                (obtained == wanted, actual.to_owned())
            }
            Claim::Count(counted, comparison, wanted) => {
                let actual = counted.of(story);
                // A story that isn't whole proves no absence.
                let whole = story.omitted == 0;
                let holds = comparison.holds(actual, wanted) && (whole || actual > 0);
                (holds, actual.to_string())
            }
            Claim::Time(measure, comparison, wanted) => match measure.of(story) {
                Some(actual) => (comparison.holds(actual, wanted), span(actual)),
                // No response: nothing that could be fast enough.
                None => (false, "no response".to_owned()),
            },
        };
        Checked {
            assertion: self.text.clone(),
            holds,
            actual,
        }
    }
}

impl Count {
    fn of(self, story: &Story) -> u64 {
        let exchanges = story.exchanges().map(|(_, exchange)| exchange);
        let findings = story.collected.findings.iter();
        let count = match self {
            Self::Requests => exchanges.count(),
            Self::Version(version) => return story.count_version(version),
            Self::Status(status) => exchanges
                .filter(|exchange| exchange.response.as_ref().and_then(|response| response.status) == Some(status))
                .count(),
            Self::Lost => exchanges
                .filter(|exchange| exchange.outcome == ExchangeOutcome::Lost)
                .count(),
            Self::Failed => return story.failed(),
            Self::Findings(None) => findings.count(),
            Self::Findings(Some(least)) => findings.filter(|finding| finding.severity >= least).count(),
            Self::Code(code) => findings.filter(|finding| finding.code == code).count(),
        };
        count as u64
    }
}

impl Measure {
    fn of(self, story: &Story) -> Option<u64> {
        let percentile = match self {
            Self::Waited => return Some(story.waited_ns()),
            Self::Latency(percentile) => percentile,
        };
        let mut latencies: Vec<u64> = story
            .records
            .iter()
            .filter_map(|record| match &record.body {
                Body::Exchange(exchange) => exchange.latency_ns,
                _ => None,
            })
            .collect();
        latencies.sort_unstable();
        // The smallest that so many percent are not above.
        let rank = (latencies.len() * usize::from(percentile)).div_ceil(100);
        latencies.get(rank.checked_sub(1)?).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{ROLE, botocore, exchange, story};
    use super::*;

    fn judge(story: &Story, text: &str) -> bool {
        let Assertions(assertions) = text.parse().unwrap_or_else(|error| panic!("{error}"));
        story.judge(&assertions).iter().all(|verdict| verdict.holds)
    }

    #[test]
    fn assertions_hold_or_not() {
        let botocore = botocore();
        for (text, holds) in [
            ("no v1", false),
            ("some v1", true),
            ("v1 = 2", true),
            ("v1 == 2, token = 1", true),
            ("v1 != 2", false),
            ("requests<=3", true),
            ("requests < 3", false),
            ("credentials obtained", true),
            ("no credentials", false),
            ("waited < 1s", false),
            ("waited < 1100ms", true),
            ("waited >= 1s", true),
            ("latency < 50ms", true),
            ("latency-p50 > 1ms", false),
            ("lost = 1", true),
            ("no lost", false),
            ("failed = 1", true),
            ("status-200 = 3", true),
            ("no status-401", true),
            ("no findings", true),
            ("no token-response-lost", true),
            ("no findings-high", true),
            ("no  v1 , no v2", false),
        ] {
            assert_eq!(judge(&botocore, text), holds, "{text}");
        }
    }

    #[test]
    fn without_a_response_no_latency_is_low() {
        let silent = story(vec![exchange(0, 1000, "token", ROLE, None)]);
        assert!(!judge(&silent, "latency < 50ms"));
        assert!(judge(&story(Vec::new()), "waited < 1s"));
    }

    #[test]
    fn an_incomplete_story_proves_no_absence() {
        let mut cut = story(vec![exchange(0, 1, "v2", ROLE, Some((200, 255, true)))]);
        assert!(judge(&cut, "no v1"));
        cut.omitted = 1;
        assert!(!judge(&cut, "no v1"));
        assert!(judge(&cut, "some v2"));
    }

    #[test]
    fn mistakes_are_errors() {
        for text in [
            "",
            "no",
            "no v3",
            "v1",
            "v1 <",
            "v1 < x",
            "no v1,",
            "waited < 1",
            "waited < x",
            "no waited",
            "status-99 = 1",
            "no status-x",
            "latency < 0s",
            "no findings-severe",
        ] {
            // A bare number is seconds.
            let is_seconds = text == "waited < 1";
            assert_eq!(text.parse::<Assertions>().is_err(), !is_seconds, "{text}");
        }
        let error = "no waited".parse::<Assertions>().unwrap_err();
        assert!(error.contains("waited < 1s"), "{error}");
    }
}
