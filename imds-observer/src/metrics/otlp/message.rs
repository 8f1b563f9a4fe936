//! Builds the OTLP requests: log records from findings, and metrics from the totals.

use std::sync::Arc;

use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsServiceRequest, ExportLogsServiceResponse};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::{
    AnyValue, ArrayValue, InstrumentationScope, KeyValue, KeyValueList, any_value,
};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs, SeverityNumber};
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, ResourceMetrics,
    ScopeMetrics, Sum, metric, number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message as _;
use serde_json::Value;

use crate::metrics::series::{Family, Labels, Number, Points, Transfers, families};
use crate::metrics::state::Totals;
use crate::record::{Body, Finding, Host, Of, Record, Severity};

/// Prefix of a finding's attribute names; the rest is the name of the record's field.
const PREFIX: &str = "imds.";

pub(super) fn logs(findings: &[Arc<Record>], host: &Host, now_ns: u64) -> ExportLogsServiceRequest {
    let log_records = findings
        .iter()
        .filter_map(|record| match &record.body {
            Body::Finding(finding) => Some(log(record.with(finding), now_ns)),
            _ => None,
        })
        .collect();
    ExportLogsServiceRequest {
        resource_logs: vec![ResourceLogs {
            resource: Some(resource(host)),
            scope_logs: vec![ScopeLogs {
                scope: Some(scope()),
                log_records,
                ..ScopeLogs::default()
            }],
            ..ResourceLogs::default()
        }],
    }
}

/// Number of records of the last request that the collector rejected.
pub(super) fn rejected_logs(response: &[u8]) -> u64 {
    ExportLogsServiceResponse::decode(response)
        .ok()
        .and_then(|response| response.partial_success)
        .map_or(0, |partial| u64::try_from(partial.rejected_log_records).unwrap_or(0))
}

fn log(finding: Of<'_, Finding>, now_ns: u64) -> LogRecord {
    // OpenTelemetry's mapping of syslog levels: critical is ERROR2. FATAL would mean that the program ended.
    let severity = match finding.severity {
        Severity::Info => SeverityNumber::Info,
        Severity::Warning => SeverityNumber::Warn,
        Severity::High => SeverityNumber::Error,
        Severity::Critical => SeverityNumber::Error2,
    };
    let mut attributes = Vec::new();
    if let Ok(Value::Object(fields)) = serde_json::to_value(finding.body) {
        for (name, value) in fields {
            // These are stored in fields of `LogRecord`, not in attributes.
            if !["severity", "summary"].contains(&name.as_str()) {
                attributes.push(attribute(format!("{PREFIX}{name}"), any(value)));
            }
        }
    }
    LogRecord {
        time_unix_nano: finding.time.unix_ns(),
        observed_time_unix_nano: now_ns,
        severity_number: severity.into(),
        severity_text: finding.severity.as_str().to_owned(),
        body: Some(text(&finding.summary)),
        attributes,
        event_name: "imds.finding".to_owned(),
        ..LogRecord::default()
    }
}

pub(super) fn metrics(
    state: &Totals,
    transfers: Option<Transfers>,
    host: &Host,
    now_ns: u64,
) -> ExportMetricsServiceRequest {
    let start_ns = state.start.as_ref().map_or(0, |start| start.time.unix_ns());
    let metrics = families(state, transfers)
        .into_iter()
        .map(|family| metric_of(&family, start_ns, now_ns))
        .collect();
    ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics {
            resource: Some(resource(host)),
            scope_metrics: vec![ScopeMetrics {
                scope: Some(scope()),
                metrics,
                ..ScopeMetrics::default()
            }],
            ..ResourceMetrics::default()
        }],
    }
}

fn metric_of(family: &Family<'_>, start_ns: u64, now_ns: u64) -> Metric {
    let number = |labels: &Labels<'_>, value: number_data_point::Value| NumberDataPoint {
        attributes: attributes(labels),
        start_time_unix_nano: start_ns,
        time_unix_nano: now_ns,
        value: Some(value),
        ..NumberDataPoint::default()
    };
    let data = match &family.points {
        Points::Counters(points) => metric::Data::Sum(Sum {
            data_points: points
                .iter()
                .map(|(labels, value)| {
                    let value = match value {
                        Number::Whole(whole) => i64::try_from(*whole).map_or_else(
                            |_| number_data_point::Value::AsDouble(value.as_f64()),
                            number_data_point::Value::AsInt,
                        ),
                        Number::Real(real) => number_data_point::Value::AsDouble(*real),
                    };
                    number(labels, value)
                })
                .collect(),
            aggregation_temporality: AggregationTemporality::Cumulative.into(),
            is_monotonic: true,
        }),
        Points::Gauges(points) => metric::Data::Gauge(Gauge {
            data_points: points
                .iter()
                .map(|(labels, value)| number(labels, number_data_point::Value::AsDouble(*value)))
                .collect(),
        }),
        Points::Histograms(points) => metric::Data::Histogram(Histogram {
            data_points: points
                .iter()
                .map(|(labels, histogram)| HistogramDataPoint {
                    attributes: attributes(labels),
                    start_time_unix_nano: start_ns,
                    time_unix_nano: now_ns,
                    count: histogram.counts.iter().sum(),
                    sum: Some(histogram.sum),
                    bucket_counts: histogram.counts.to_vec(),
                    explicit_bounds: histogram.bounds.to_vec(),
                    ..HistogramDataPoint::default()
                })
                .collect(),
            aggregation_temporality: AggregationTemporality::Cumulative.into(),
        }),
    };
    Metric {
        name: family.name.to_owned(),
        description: family.help.to_owned(),
        data: Some(data),
        ..Metric::default()
    }
}

/// Uses only facts that are already known. OpenTelemetry's resource detection would send requests to IMDS.
fn resource(host: &Host) -> Resource {
    let attributes = [
        ("service.name", "imds-observer"),
        ("service.version", env!("CARGO_PKG_VERSION")),
        ("service.instance.id", host.as_ref()),
        ("host.name", host.as_ref()),
        ("os.type", "linux"),
    ];
    Resource {
        attributes: attributes
            .map(|(key, value)| attribute(key.to_owned(), text(value)))
            .into(),
        ..Resource::default()
    }
}

fn scope() -> InstrumentationScope {
    InstrumentationScope {
        name: "imds-observer".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    }
}

fn attributes(labels: &Labels<'_>) -> Vec<KeyValue> {
    labels
        .iter()
        .map(|(name, value)| attribute((*name).to_owned(), text(value)))
        .collect()
}

fn attribute(key: String, value: AnyValue) -> KeyValue {
    KeyValue {
        key,
        value: Some(value),
        ..KeyValue::default()
    }
}

fn text(text: &str) -> AnyValue {
    AnyValue {
        value: Some(any_value::Value::StringValue(text.to_owned())),
    }
}

/// Converts JSON to an OTLP value; null is an unset value.
fn any(value: Value) -> AnyValue {
    let value = match value {
        Value::Null => None,
        Value::Bool(yes) => Some(any_value::Value::BoolValue(yes)),
        Value::Number(number) => Some(match number.as_i64() {
            Some(whole) => any_value::Value::IntValue(whole),
            None => any_value::Value::DoubleValue(number.as_f64().unwrap_or(0.0)),
        }),
        Value::String(text) => Some(any_value::Value::StringValue(text)),
        Value::Array(values) => Some(any_value::Value::ArrayValue(ArrayValue {
            values: values.into_iter().map(any).collect(),
        })),
        Value::Object(fields) => Some(any_value::Value::KvlistValue(KeyValueList {
            values: fields
                .into_iter()
                .map(|(key, value)| attribute(key, any(value)))
                .collect(),
        })),
    };
    AnyValue { value }
}
