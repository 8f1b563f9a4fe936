//! The JSON Schema of all records in one document, made from the types.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::{Host, Kind, SCHEMA, Time};

/// `oneOf` over the records, distinguished by the constant `record`.
pub fn schema() -> Value {
    let mut generator = SchemaSettings::draft2020_12().for_serialize().into_generator();
    let kinds = Kind::ALL.map(|kind| (kind, kind.schema(&mut generator)));
    let (time, host) = (generator.subschema_for::<Time>(), generator.subschema_for::<Host>());
    let mut definitions: Map<String, Value> = generator.take_definitions(true);
    for (kind, name) in &kinds {
        let Some(record) = definitions.get_mut(name) else {
            continue;
        };
        let envelope = [
            ("record", json!({"const": kind.as_str()})),
            ("schema", json!({"const": SCHEMA})),
            ("time", json!(time)),
            ("host", json!(host)),
        ];
        for (key, schema) in envelope {
            record["properties"][key] = schema;
            if let Some(required) = record["required"].as_array_mut() {
                required.push(json!(key));
            }
        }
        if *kind == Kind::Exchange {
            record["properties"]["time"]["description"] = json!("When the first byte of the request left the process.");
        }
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "imds-observer record",
        "description": "One line of imds-observer's NDJSON.",
        "oneOf": kinds.map(|(_, name)| json!({"$ref": format!("#/$defs/{name}")})),
        "$defs": definitions,
    })
}

/// Name under which the generator has a type's schema from now on.
pub(super) fn name<T: JsonSchema>(generator: &mut SchemaGenerator) -> String {
    generator.subschema_for::<T>();
    T::schema_name().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_a_record_of_its_own_with_every_field_required() {
        let schema = schema();
        assert_eq!(schema["oneOf"].as_array().unwrap().len(), Kind::ALL.len());
        for (name, kind) in [("Exchange", "exchange"), ("Loss", "loss"), ("Start", "start")] {
            let record = &schema["$defs"][name];
            assert_eq!(record["properties"]["record"]["const"], kind);
            let required = record["required"].as_array().unwrap();
            assert_eq!(
                required.len(),
                record["properties"].as_object().unwrap().len(),
                "{name}"
            );
        }
    }
}
