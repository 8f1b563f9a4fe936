//! The JSON Schema of all records in one document, made from the types.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::{Connect, Drop, Exchange, Finding, Kind, Loss, SCHEMA, Start, Summary};

/// `oneOf` over the records, distinguished by the constant `record`.
pub fn schema() -> Value {
    let mut generator = SchemaSettings::draft2020_12().for_serialize().into_generator();
    let kinds = Kind::ALL.map(|kind| {
        let reference = match kind {
            Kind::Start => reference::<Start>(&mut generator),
            Kind::Exchange => reference::<Exchange>(&mut generator),
            Kind::Connect => reference::<Connect>(&mut generator),
            Kind::Drop => reference::<Drop>(&mut generator),
            Kind::Finding => reference::<Finding>(&mut generator),
            Kind::Summary => reference::<Summary>(&mut generator),
            Kind::Loss => reference::<Loss>(&mut generator),
        };
        (kind, reference)
    });
    let mut definitions: Map<String, Value> = generator.take_definitions(true);
    for (kind, reference) in &kinds {
        let name = reference.rsplit('/').next().unwrap_or_default();
        if let Some(properties) = definitions
            .get_mut(name)
            .and_then(|record| record.get_mut("properties"))
        {
            properties["record"] = json!({"const": kind.as_str()});
            properties["schema"] = json!({"const": SCHEMA});
        }
    }
    definitions.remove("Kind");
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "imds-observer record",
        "description": "One line of imds-observer's NDJSON.",
        "oneOf": kinds.map(|(_, reference)| json!({"$ref": reference})),
        "$defs": definitions,
    })
}

fn reference<T: JsonSchema>(generator: &mut SchemaGenerator) -> String {
    let schema = generator.subschema_for::<T>();
    schema
        .get("$ref")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned()
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
