// SPDX-License-Identifier: Apache-2.0
//! What the API of Cloudflare says. Pure.

use super::{Data, Kind};
use crate::caa::Caa;
use serde::Deserialize;
use serde_json::{Value, json};

/// A record with the id by which it is removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its id.
    pub id: String,
    /// Its name, lower case.
    pub name: String,
    /// What it says.
    pub data: Data,
}

/// A page of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// What is on it.
    pub rows: Vec<T>,
    /// How many pages there are.
    pub pages: usize,
}

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Refusal {
    /// Codes and words.
    pub errors: Vec<(u64, String)>,
}

#[derive(Deserialize)]
struct Envelope<T> {
    success: bool,
    #[serde(default)]
    errors: Vec<Problem>,
    result: Option<T>,
    result_info: Option<Info>,
}

#[derive(Deserialize)]
struct Problem {
    code: u64,
    #[serde(default)]
    message: String,
    #[serde(default)]
    error_chain: Vec<Problem>,
}

#[derive(Deserialize)]
struct Info {
    #[serde(default)]
    total_pages: usize,
}

#[derive(Deserialize)]
struct RawRecord {
    id: String,
    name: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    content: String,
    data: Option<RawCaa>,
}

#[derive(Deserialize)]
struct RawCaa {
    flags: Option<u8>,
    tag: Option<String>,
    value: Option<String>,
}

#[derive(Deserialize)]
struct RawZone {
    id: String,
}

fn open<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<(T, usize), Refusal> {
    let strange = |e: String| Refusal { errors: vec![(0, e)] };
    let envelope: Envelope<T> =
        serde_json::from_slice(bytes).map_err(|e| strange(format!("its answer is not understood: {e}")))?;
    if !envelope.success {
        let flat = |p: Problem| {
            std::iter::once((p.code, p.message)).chain(p.error_chain.into_iter().map(|p| (p.code, p.message)))
        };
        return Err(Refusal { errors: envelope.errors.into_iter().flat_map(flat).collect() });
    }
    let pages = envelope.result_info.map_or(1, |info| info.total_pages);
    envelope.result.map(|result| (result, pages)).ok_or_else(|| strange("its answer has no result".into()))
}

/// A page of records; other kinds than the asked one are left out.
///
/// # Errors
/// [`Refusal`].
pub fn records(bytes: &[u8], kind: Kind) -> Result<Page<Row>, Refusal> {
    let (raw, pages): (Vec<RawRecord>, usize) = open(bytes)?;
    let rows = raw.into_iter().filter(|r| r.kind == kind.word());
    let rows = rows.filter_map(|r| {
        let data = match kind {
            Kind::Txt => Data::Txt(unquoted(&r.content)),
            Kind::Caa => Data::Caa(caa(&r)?),
        };
        Some(Row { id: r.id, name: r.name.to_ascii_lowercase(), data })
    });
    Ok(Page { rows: rows.collect(), pages })
}

/// Ids of zones.
///
/// # Errors
/// [`Refusal`].
pub fn zones(bytes: &[u8]) -> Result<Vec<String>, Refusal> {
    let (raw, _): (Vec<RawZone>, usize) = open(bytes)?;
    Ok(raw.into_iter().map(|zone| zone.id).collect())
}

/// Whether a change was made.
///
/// # Errors
/// [`Refusal`].
pub fn changed(bytes: &[u8]) -> Result<(), Refusal> {
    open::<Value>(bytes).map(drop)
}

/// Text of a TXT record, which the API gives with or without quotes, in one or several parts.
fn unquoted(content: &str) -> String {
    let inner = content.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    inner.map_or_else(|| content.to_owned(), |inner| inner.split("\" \"").collect())
}

fn caa(record: &RawRecord) -> Option<Caa> {
    if let Some(RawCaa { flags, tag: Some(tag), value: Some(value) }) = &record.data {
        return Some(Caa { flags: flags.unwrap_or(0), tag: tag.to_ascii_lowercase(), value: value.clone() });
    }
    let mut parts = record.content.splitn(3, ' ');
    let (flags, tag, value) = (parts.next()?.parse().ok()?, parts.next()?, parts.next()?);
    Some(Caa { flags, tag: tag.to_ascii_lowercase(), value: unquoted(value) })
}

/// What is posted to make a record.
#[must_use]
pub fn creation(name: &str, data: &Data, ttl: u32) -> Value {
    match data {
        Data::Txt(text) => json!({"type": "TXT", "name": name, "content": format!("\"{text}\""), "ttl": ttl}),
        Data::Caa(caa) => {
            let data = json!({"flags": caa.flags, "tag": caa.tag, "value": caa.value});
            json!({"type": "CAA", "name": name, "ttl": ttl, "data": data})
        }
    }
}

impl Refusal {
    /// Whether one of these codes is among it.
    #[must_use]
    pub fn has(&self, codes: &[u64]) -> bool {
        self.errors.iter().any(|(code, _)| codes.contains(code))
    }

    /// In words, with the remedy.
    #[must_use]
    pub fn words(&self) -> String {
        let said: Vec<String> =
            self.errors.iter().map(|(code, text)| format!("{text} (code {code})")).collect();
        let said = if said.is_empty() { "it refuses without a word".to_owned() } else { said.join("; ") };
        match remedy(self) {
            Some(remedy) => format!("{said}; {remedy}"),
            None => said,
        }
    }
}

fn remedy(refusal: &Refusal) -> Option<&'static str> {
    if refusal.has(&[6003, 6111, 9106, 9109, 1000, 1001]) {
        return Some(
            "the token is none, or has expired or been rolled; make one and store it as the credential certbot-cloudflare, see certbot.toml(5)",
        );
    }
    if refusal.has(&[10000, 9103, 7000]) {
        return Some(
            "the token lacks a permission: it needs \"Zone / DNS / Edit\" for this zone, and \"Zone / Zone / Read\" when cf_zone_id is not set",
        );
    }
    if refusal.has(&[7003, 1049]) {
        return Some("there is no such zone for this token; see cf_zone_id in certbot.toml");
    }
    refusal.has(&[971, 10429]).then_some("there were too many requests; the next run tries again")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn records_in_both_forms() {
        let text = r#"{"success":true,"errors":[],"result":[
            {"id":"1","type":"TXT","name":"A.example","content":"\"x\" \"y\""},
            {"id":"2","type":"CAA","name":"a.example","content":"0 issue \"ca;b\"","data":{"flags":0,"tag":"issue","value":"ca;b"}},
            {"id":"3","type":"CAA","name":"a.example","content":"128 ISSUEWILD \";\""},
            {"id":"4","type":"A","name":"a.example","content":"192.0.2.1"}],
            "result_info":{"page":1,"per_page":100,"count":4,"total_count":150,"total_pages":2}}"#;
        let txt = records(text.as_bytes(), Kind::Txt).unwrap();
        assert_eq!(
            (txt.pages, txt.rows),
            (2, vec![Row { id: "1".into(), name: "a.example".into(), data: Data::Txt("xy".into()) }])
        );
        let caa = records(text.as_bytes(), Kind::Caa).unwrap().rows;
        let data: Vec<Data> = caa.into_iter().map(|r| r.data).collect();
        let wild = Caa { flags: 128, tag: "issuewild".into(), value: ";".into() };
        assert_eq!(data, [Data::Caa(Caa::new("issue", "ca;b")), Data::Caa(wild)]);
    }

    #[test]
    fn refusals_say_what_to_do() {
        for (code, words) in [
            (9109, "credential certbot-cloudflare"),
            (10000, "Zone / DNS / Edit"),
            (7003, "cf_zone_id"),
            (5, "code 5"),
        ] {
            let text =
                format!(r#"{{"success":false,"errors":[{{"code":{code},"message":"no"}}],"result":null}}"#);
            let said = changed(text.as_bytes()).unwrap_err().words();
            assert!(said.contains(words) && said.contains("no (code"), "{said}");
        }
        let chained = br#"{"success":false,"errors":[{"code":1,"message":"a","error_chain":[{"code":6111,"message":"b"}]}]}"#;
        assert!(changed(chained).unwrap_err().has(&[6111]));
        for bad in ["", "[]", "<html>", r#"{"success":true}"#] {
            assert!(zones(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
