// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used)]

use super::*;
use crate::dstack::{GetKeyArgs, GetKeyResponse, GetTlsKeyArgs};
use crate::tappd::TdxQuoteArgs;
use crate::teepod::{Id, UpgradeAppRequest, VmConfiguration, VmInfo};

#[test]
fn the_format_follows_method_query_and_type() {
    let cases = [
        (Method::POST, "/prpc/A.B", None, Format::Protobuf),
        (Method::POST, "/prpc/A.B?json", None, Format::Json),
        (Method::POST, "/prpc/A.B?x=1&json=true", None, Format::Json),
        (Method::POST, "/prpc/A.B?json=1", None, Format::Json),
        (Method::POST, "/prpc/A.B?json=0", None, Format::Protobuf),
        (Method::POST, "/prpc/A.B?jsonish", None, Format::Protobuf),
        (Method::POST, "/prpc/A.B", Some("application/json"), Format::Json),
        (Method::POST, "/prpc/A.B", Some("Application/JSON; charset=utf-8"), Format::Json),
        (Method::POST, "/prpc/A.B", Some("application/octet-stream"), Format::Protobuf),
        (Method::GET, "/prpc/A.B", None, Format::Json),
    ];
    for (method, uri, content_type, format) in cases {
        let header = content_type.map(HeaderValue::from_static);
        assert_eq!(Format::of(&method, &uri.parse().unwrap(), header.as_ref()), format, "{method} {uri}");
    }
}

#[test]
fn paths_with_and_without_the_service() {
    for (segment, method) in
        [("Info", Some("Info")), ("Teepod.CreateVm", Some("CreateVm")), ("Other.Info", None), ("", None)]
    {
        assert_eq!(method_name(segment, &["Teepod"]).ok(), method, "{segment}");
    }
    assert!(method_name("Teepod.", &["Teepod"]).is_err());
    assert!(method_name("a/b", &[]).is_err());
    assert!(method_name(&"M".repeat(METHOD_MAX + 1), &[]).is_err());
}

#[test]
fn empty_json_bodies_are_the_default() {
    for body in ["", " \n", "null", "{}", r#"{"unknown":[1]}"#] {
        assert_eq!(decode::<Id>(Format::Json, body.as_bytes()).unwrap(), Id::default(), "{body}");
    }
    let error = decode::<Id>(Format::Json, br#"{"id":7}"#).unwrap_err();
    assert_eq!(error.status, StatusCode::BAD_REQUEST);
    assert!(error.message.contains("line 1"), "{error}");
}

#[test]
fn bytes_are_hex_and_absent_is_null() {
    let request: UpgradeAppRequest =
        decode(Format::Json, br#"{"id":"a","compose_file":"{}","encrypted_env":"0xAB01"}"#).unwrap();
    assert_eq!(request.encrypted_env, [0xab, 1]);
    let json = String::from_utf8(encode(Format::Json, &request).unwrap()).unwrap();
    assert_eq!(json, r#"{"id":"a","compose_file":"{}","encrypted_env":"ab01"}"#);
    let json = encode(Format::Json, &VmInfo::default()).unwrap();
    assert!(String::from_utf8(json).unwrap().contains(r#""app_url":null"#));
    assert_eq!(encode(Format::Json, &()).unwrap(), b"null");
    assert_eq!(encode(Format::Protobuf, &()).unwrap(), b"");
}

#[test]
fn json_replies_are_ascii() {
    let id = Id { id: "ü\"€\n𝄞".into() };
    let json = encode(Format::Json, &id).unwrap();
    assert_eq!(json, br#"{"id":"\u00fc\"\u20ac\n\ud834\udd1e"}"#);
    assert_eq!(decode::<Id>(Format::Json, &json).unwrap(), id);
    assert!(RpcError::failed("ü").encode(Format::Json).is_ascii());
}

#[test]
fn the_services_for_containers_take_what_clients_send() {
    let args: TdxQuoteArgs =
        decode(Format::Json, br#"{"report_data":"0xAB","hash_algorithm":null,"prefix":null}"#).unwrap();
    assert_eq!(args, TdxQuoteArgs { report_data: vec![0xab], ..Default::default() });
    let args: GetTlsKeyArgs =
        decode(Format::Json, br#"{"alt_names":null,"not_after":7,"usage_ra_tls":true}"#).unwrap();
    assert!(args.alt_names.is_empty() && args.usage_ra_tls && args.not_after == Some(7));
    assert_eq!(decode_query::<GetKeyArgs>("path=a%2Fb&purpose=p").unwrap().path, "a/b");
    let key = GetKeyResponse { key: vec![1], signature_chain: vec![vec![2], vec![]] };
    let json = encode(Format::Json, &key).unwrap();
    assert_eq!(json, br#"{"key":"01","signature_chain":["02",""]}"#);
    assert_eq!(decode::<GetKeyResponse>(Format::Json, &json).unwrap(), key);
    let protobuf = encode(Format::Protobuf, &key).unwrap();
    assert_eq!(protobuf, [0x0a, 1, 1, 0x12, 1, 2, 0x12, 0]);
    assert_eq!(decode::<GetKeyResponse>(Format::Protobuf, &protobuf).unwrap(), key);
}

#[test]
fn protobuf_has_the_numbers_of_the_original() {
    let vm = VmConfiguration { name: "a".into(), vcpu: 2, app_id: Some("b".into()), ..Default::default() };
    let bytes = encode(Format::Protobuf, &vm).unwrap();
    assert_eq!(bytes, [0x0a, 1, b'a', 0x20, 2, 0x4a, 1, b'b']);
    assert_eq!(decode::<VmConfiguration>(Format::Protobuf, &bytes).unwrap(), vm);
    assert!(decode::<VmConfiguration>(Format::Protobuf, &[0x0a, 9, 1]).is_err());
}

#[test]
fn errors_in_both_formats() {
    let error = RpcError::failed("no \"vm\"");
    assert_eq!(error.encode(Format::Json), br#"{"error":"no \"vm\""}"#);
    assert_eq!(error.encode(Format::Protobuf), b"\x0a\x07no \"vm\"");
}

#[test]
fn queries_carry_the_arguments_of_a_get() {
    assert_eq!(decode_query::<Id>("json&id=a%2Fb").unwrap().id, "a/b");
    let resize = decode_query::<crate::teepod::ResizeVmRequest>("id=a&memory=2048").unwrap();
    assert_eq!((resize.memory, resize.vcpu), (Some(2048), None));
    assert!(decode_query::<crate::teepod::ResizeVmRequest>("id=a&memory=much").is_err());
}
