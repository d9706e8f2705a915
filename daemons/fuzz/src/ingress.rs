// SPDX-License-Identifier: Apache-2.0
//! Targets of what the ingress and its clients say.

use dstack_core::{client_hello, compose, flow, http_head, registrations, sni};

/// A prefix that needs more says so with a number that grows, and a hello's name is a DNS name in lower case.
pub fn client_hello(bytes: &[u8]) {
    match client_hello::parse(bytes) {
        Ok(client_hello::Progress::NeedMore(needed)) => {
            assert!(
                needed > bytes.len() && needed <= client_hello::PREFIX_MAX + 5,
                "{needed} of {}",
                bytes.len()
            );
        }
        Ok(client_hello::Progress::Done(hello)) => {
            assert!(hello.length <= bytes.len(), "longer than the stream");
            let name = hello.server_name.unwrap_or_default();
            assert!(
                name.len() <= 253 && !name.bytes().any(|b| b.is_ascii_uppercase() || b == b'/'),
                "{name:?}"
            );
        }
        Err(_) => {}
    }
}

/// Inputs that parse.
pub fn client_hello_samples() -> Vec<Vec<u8>> {
    let name = b"abc.example.com";
    let extensions =
        [&[0, 0, 0, 20, 0, 18, 0, 0, 15][..], name, &[0, 16, 0, 5, 0, 3, 2, b'h', b'2']].concat();
    let head = [&[3, 3][..], &[7; 32], &[0, 0, 2, 0x13, 0x01, 1, 0, 0, 33]].concat();
    let body = [head, extensions].concat();
    let message = [&[1, 0, 0, u8::try_from(body.len()).unwrap_or(0)][..], &body].concat();
    let record = |part: &[u8]| [&[22, 3, 1, 0, u8::try_from(part.len()).unwrap_or(0)][..], part].concat();
    let real = [
        include_bytes!("../../lib/core/tests/client_hellos/chromium.bin").as_slice(),
        include_bytes!("../../lib/core/tests/client_hellos/java.bin"),
        include_bytes!("../../lib/core/tests/client_hellos/openssl-tls12.bin"),
    ];
    let mut samples = vec![record(&message), message.chunks(7).flat_map(record).collect()];
    samples.extend(real.map(<[u8]>::to_vec));
    samples
}

/// A name leads to one place, whatever its case; a TXT value never leads to an address.
pub fn sni(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (lower, upper) = (text.to_ascii_lowercase(), text.to_ascii_uppercase());
    let base = "app.example.com";
    assert_eq!(sni::route(&lower, base).ok(), sni::route(&upper, base).ok(), "{text:?}");
    if let Ok((_, port)) = sni::parse_txt(text) {
        assert!(port > 0, "{text:?}");
    }
}

/// Inputs that parse.
pub fn sni_samples() -> Vec<Vec<u8>> {
    let id = "3327603e03f5bd1f830812ca4a789277fc31f577";
    [".app.example.com", "-8080s.app.example.com", "s.app.example.com", ":8043", "-80g.app.example.com"]
        .map(|tail| format!("{id}{tail}").into_bytes())
        .to_vec()
}

/// A head is found at the same place however much follows it, and never before its end.
pub fn http_head(bytes: &[u8]) {
    if let Ok(http_head::Progress::Done { host, length }) = http_head::parse(bytes) {
        let head = bytes.get(..length).unwrap_or_default();
        assert!(head.ends_with(b"\r\n\r\n") && !host.is_empty(), "{host:?}");
        assert_eq!(http_head::parse(head), Ok(http_head::Progress::Done { host, length }));
        let shorter = head.get(..length - 1).unwrap_or_default();
        assert_eq!(http_head::parse(shorter), Ok(http_head::Progress::NeedMore));
    }
}

/// Inputs that parse.
pub fn http_head_samples() -> Vec<Vec<u8>> {
    ["GET / HTTP/1.1\r\nHost: a.b\r\n\r\n", "POST /x HTTP/1.0\r\nA: b\r\nhost: c:80\r\n\r\nbody"]
        .map(|text| text.as_bytes().to_vec())
        .to_vec()
}

/// Whatever comes out of a stream and parses is the same after another round.
pub fn flow_frame(bytes: &[u8]) {
    flow_stream::<flow::ToFlow>(bytes);
    flow_stream::<flow::FromFlow>(bytes);
}

fn flow_stream<T: flow::Message + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    let mut decoder = flow::Decoder::default();
    for piece in bytes.chunks(bytes.len() / 3 + 1) {
        decoder.push(piece);
        while let Ok(Some(body)) = decoder.next_frame() {
            let Ok(flow::Parsed::Known(message)) = flow::parse::<T>(body) else { continue };
            let again = flow::format(&message).ok();
            let again = again.and_then(|f| flow::parse(f.get(4..).unwrap_or_default()).ok());
            assert_eq!(again, Some(flow::Parsed::Known(message)));
        }
    }
}

/// Inputs that parse.
pub fn flow_frame_samples() -> Vec<Vec<u8>> {
    let id = "07".repeat(20);
    let instance = format!(
        r#"{{"instance_id":"{id}","app_id":"{id}","address":"10.0.0.7","handshake":7,"port_policy":[80]}}"#
    );
    [
        r#"{"config":{"base_domains":["example.org"],"timeouts":{"idle":null,"connect":100}}}"#.to_owned(),
        r#"{"certificates":[{"names":["*.example.org"],"chain":"c","key":"k"}]}"#.to_owned(),
        format!(r#"{{"route-delta":{{"upsert":[{instance}],"remove":["{id}"]}}}}"#),
        format!(r#"{{"name-answer":{{"name":"a.b","target":{{"id":"{id}","port":1}},"ttl":9}}}}"#),
        r#"{"hello":{"version":1,"generation":2,"pid":3}}"#.to_owned(),
        format!(r#"{{"stats":{{"counters":{{"open":1}},"instances":[{{"instance":"{id}"}}]}}}}"#),
        r#"{"drained":{}}"#.to_owned(),
    ]
    .map(|json| [&u32::try_from(json.len()).unwrap_or_default().to_be_bytes(), json.as_bytes()].concat())
    .to_vec()
}

/// Whatever a file of registrations says, an address is of a name and has no markup.
pub fn registrations(bytes: &[u8]) {
    let app = compose::hash(b"{}").app_id();
    for one in registrations::parse(bytes) {
        let url = one.url(&app);
        assert!(url.starts_with(&format!("https://{app}.")) && url.ends_with('/'), "{url}");
        assert!(!url.contains(['<', '>', '"', '\'', '&', ' ', '@', '#', '?']), "{url}");
    }
}

/// Inputs that parse.
pub fn registrations_samples() -> Vec<Vec<u8>> {
    vec![br#"{"version":1,"tunnels":[{"domain":"apps.test","external_port":9443}],"missed":{}}"#.to_vec()]
}
