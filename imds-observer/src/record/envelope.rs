//! The envelope in JSON: `record`, `schema`, `time` and `host` come before the fields of the body, in one object.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::{CowStrDeserializer, MapAccessDeserializer};
use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Host, Record, SCHEMA, Time};

/// A body whose record can be written: `record` bears this name.
pub(super) trait Named: Serialize {
    fn name(&self) -> &'static str;
}

impl<B: Named> Serialize for Record<B> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Line<'a, B> {
            record: &'static str,
            schema: u32,
            time: Time,
            host: &'a str,
            #[serde(flatten)]
            body: &'a B,
        }
        Line {
            record: self.body.name(),
            schema: SCHEMA,
            time: self.time,
            host: &self.host,
            body: &self.body,
        }
        .serialize(serializer)
    }
}

/// Keys in any order. Serde's `flatten` would copy the whole line first, and lose the position of an error.
impl<'de, B: Deserialize<'de>> Deserialize<'de> for Record<B> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Line(PhantomData))
    }
}

struct Line<B>(PhantomData<B>);

impl<'de, B: Deserialize<'de>> Visitor<'de> for Line<B> {
    type Value = Record<B>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a record")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Record<B>, A::Error> {
        let mut members = Members {
            map,
            record: None,
            schema: None,
            time: None,
            host: None,
        };
        let body = B::deserialize(MapAccessDeserializer::new(&mut members))?;
        members.record.ok_or_else(|| Error::missing_field("record"))?;
        members.schema.ok_or_else(|| Error::missing_field("schema"))?;
        Ok(Record {
            time: members.time.ok_or_else(|| Error::missing_field("time"))?,
            host: members.host.ok_or_else(|| Error::missing_field("host"))?,
            body,
        })
    }
}

/// The members of the line: keeps those of the envelope, and passes the others on.
struct Members<A> {
    map: A,
    record: Option<IgnoredAny>,
    schema: Option<u32>,
    time: Option<Time>,
    host: Option<Host>,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for &mut Members<A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        while let Some(Key(key)) = self.map.next_key()? {
            match &*key {
                "record" => once(&mut self.map, &mut self.record, "record")?,
                "schema" => once(&mut self.map, &mut self.schema, "schema")?,
                "time" => once(&mut self.map, &mut self.time, "time")?,
                "host" => once(&mut self.map, &mut self.host, "host")?,
                _ => return seed.deserialize(CowStrDeserializer::new(key)).map(Some),
            }
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.map.next_value_seed(seed)
    }
}

fn once<'de, A, T>(map: &mut A, value: &mut Option<T>, key: &'static str) -> Result<(), A::Error>
where
    A: MapAccess<'de>,
    T: Deserialize<'de>,
{
    match value.replace(map.next_value()?) {
        None => Ok(()),
        Some(_) => Err(Error::duplicate_field(key)),
    }
}

/// A key, borrowed from the line unless it has escapes.
#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Body, LossCounts};

    const LINE: &str = r#"{"record":"loss","schema":1,"time":"2026-01-01T00:00:01.000000000Z","host":"a","ring_buffer":1,"unparsed":0,"truncated":0,"evicted":0,"unattributed":0,"shed":0,"unknown_containers":0,"detached":0,"preempted":0,"clock_step_ns":0}"#;

    fn read(line: &str) -> serde_json::Result<Record<LossCounts>> {
        serde_json::from_str(line)
    }

    #[test]
    fn a_record_is_one_object_that_begins_with_the_envelope() {
        let record = read(LINE).unwrap();
        assert_eq!((&*record.host, record.ring_buffer), ("a", 1));
        assert_eq!(serde_json::to_string(&record).unwrap(), LINE);
        let record = Record::<Body>::from(record);
        assert_eq!(serde_json::to_string(&record).unwrap(), LINE);
    }

    #[test]
    fn keys_of_the_envelope_come_anywhere_and_once() {
        let moved = LINE.replace(r#""host":"a","#, "").replace('}', r#","\u0068ost":"a"}"#);
        assert_eq!(read(&moved).unwrap(), read(LINE).unwrap());
        for key in ["record", "schema", "time", "host"] {
            let start = LINE.find(&format!("\"{key}\":")).unwrap();
            let member = &LINE[start..=start + LINE[start..].find(',').unwrap()];
            let error = read(&LINE.replace(member, "")).unwrap_err();
            assert!(error.to_string().contains(key), "{error}");
            let error = read(&LINE.replace(member, &member.repeat(2))).unwrap_err();
            assert!(error.to_string().contains(key), "{error}");
        }
    }

    #[test]
    fn an_error_is_where_it_is_in_the_line() {
        let wrong = LINE.replace(r#""evicted":0"#, r#""evicted":"0""#);
        let column = wrong.find("\"0\"").unwrap() + 3;
        assert_eq!(read(&wrong).unwrap_err().column(), column);
    }
}
