// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used)]
use super::*;
use crate::errors::Exit;
use dstack_core::compose::hash;

const FILE: &str = "services:\n  web:\n    image: nginx:1\n";

fn input(text: &str) -> Input {
    Input {
        bytes: text.as_bytes().to_vec(),
        directory: "My App_2".to_owned(),
        shown: "docker-compose.yaml".to_owned(),
    }
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

#[test]
fn golden_bytes() {
    let built = build(Some(&input(FILE)), Some("hello"), &Document::default(), &Trust::default()).unwrap();
    let golden = concat!(
        r#"{"manifest_version":2,"name":"hello","runner":"docker-compose","#,
        r#""docker_compose_file":"services:\n  web:\n    image: nginx:1\n","docker_config":{},"#,
        r#""kms_enabled":false,"tproxy_enabled":false,"public_logs":true,"public_sysinfo":true,"#,
        r#""key_provider":"none","allowed_envs":[]}"#
    );
    assert_eq!(String::from_utf8(built.bytes.clone()).unwrap(), golden);
    assert_eq!(built.unpinned, ["nginx:1"]);
    assert_eq!(hash(&built.bytes).app_id(), hash(golden.as_bytes()).app_id());
}

#[test]
fn golden_bytes_with_everything() {
    let script = file("echo hi\n");
    let options = Document {
        registry_insecure: vec!["registry.test:5000".into()],
        registry_mirror: vec!["https://mirror.test".into()],
        pre_launch_script: Some(script.path().to_owned()),
        runner: Runner::Bash,
        script: Some(script.path().to_owned()),
        no_public_logs: true,
        no_public_sysinfo: true,
        ..Document::default()
    };
    let built = build(None, Some("job"), &options, &Trust::default()).unwrap();
    let golden = concat!(
        r#"{"manifest_version":2,"name":"job","runner":"bash","docker_config":{},"kms_enabled":false,"#,
        r#""tproxy_enabled":false,"public_logs":false,"public_sysinfo":false,"key_provider":"none","#,
        r#""allowed_envs":[],"bash_script":"echo hi\n","pre_launch_script":"echo hi\n","#,
        r#""insecure_registries":["registry.test:5000"],"registry_mirrors":["https://mirror.test"]}"#
    );
    assert_eq!(String::from_utf8(built.bytes).unwrap(), golden);
}

#[test]
fn a_document_is_used_byte_for_byte() {
    let text = "{ \"manifest_version\": 2, \"name\":\"x\", \"runner\":\"docker-compose\",\n\
                \"docker_compose_file\":\"services: {a: {image: 'b@sha256:00'}}\", \"unknown\": 1 }\n";
    let built = build(Some(&input(text)), None, &Document::default(), &Trust::default()).unwrap();
    assert_eq!(built.bytes, text.as_bytes());
    assert!(built.unpinned.is_empty());
    let options = Document { no_public_logs: true, ..Document::default() };
    let failure = build(Some(&input(text)), None, &options, &Trust::default()).unwrap_err();
    assert!(failure.exit == Exit::Usage && failure.message.contains("--no-public-logs"), "{failure}");
}

#[test]
fn names() {
    for (text, name) in [
        ("hello", "hello"),
        ("My App_2", "my-app-2"),
        ("--x--", "x"),
        ("Ünï", "n"),
        ("...", ""),
        (&"ab-".repeat(20), "ab-ab-ab-ab-ab-ab-ab-ab-ab-ab"),
    ] {
        assert_eq!(valid_name(text), name, "{text}");
    }
    let name = |text: &str| {
        build(Some(&input(text)), None, &Document::default(), &Trust::default()).unwrap().parsed.name
    };
    assert_eq!(name(FILE), "my-app-2");
    assert_eq!(name(&format!("name: Board\n{FILE}")), "board");
    let unnamed = Input { directory: String::new(), ..input(FILE) };
    assert_eq!(
        build(Some(&unnamed), None, &Document::default(), &Trust::default()).unwrap_err().exit,
        Exit::Usage
    );
}

#[test]
fn wrong_input_is_named() {
    for (text, part) in [
        ("", "services"),
        ("services: [", "YAML"),
        ("a: b", "services"),
        ("{\"manifest_version\": 7, \"name\": \"x\", \"runner\": \"bash\"}", "manifest_version"),
    ] {
        let failure =
            build(Some(&input(text)), Some("x"), &Document::default(), &Trust::default()).unwrap_err();
        assert!(failure.message.contains(part), "{text}: {failure}");
    }
    let big = format!("services:\n  a:\n    image: {}\n", "x".repeat(APP_COMPOSE_MAX));
    assert!(
        build(Some(&input(&big)), Some("x"), &Document::default(), &Trust::default())
            .unwrap_err()
            .message
            .contains("larger")
    );
}

#[test]
fn t03_t08_t09_golden_bytes_with_a_key_service() {
    let options = Document {
        docker_login: Some("me@registry.test".into()),
        docker_token_key: Some("TOKEN".into()),
        ..Document::default()
    };
    let key = |byte: &str| byte.repeat(32).parse().unwrap();
    let trust = Trust {
        key_provider_id: Some("3059".into()),
        allowed_envs: vec!["A".into(), "TOKEN".into()],
        env_signer: Some(key("aa")),
        upgrade_keys: vec![key("bb")],
        rollback: Some(dstack_core::compose::Rollback::Refuse),
        tproxy: true,
        port_policy: Some(dstack_core::compose::PortPolicy {
            ports: vec![dstack_core::compose::PortRule { port: 80, pp: true }],
            restrict_mode: true,
        }),
    };
    let built = build(Some(&input(FILE)), Some("hello"), &options, &trust).unwrap();
    let golden = format!(
        "{}{}{}",
        concat!(
            r#"{"manifest_version":2,"name":"hello","runner":"docker-compose","#,
            r#""docker_compose_file":"services:\n  web:\n    image: nginx:1\n","#,
            r#""docker_config":{"registry":"registry.test","username":"me","token_key":"TOKEN"},"#,
            r#""kms_enabled":true,"tproxy_enabled":true,"public_logs":true,"public_sysinfo":true,"#,
            r#""key_provider":"kms","allowed_envs":["A","TOKEN"],"key_provider_id":"3059","#,
        ),
        format_args!(
            r#""env_signer":"{}","upgrade_keys":["{}"],"rollback":"refuse","#,
            "aa".repeat(32),
            "bb".repeat(32)
        ),
        r#""port_policy":{"ports":[{"port":80,"pp":true}],"restrict_mode":true}}"#
    );
    assert_eq!(String::from_utf8(built.bytes).unwrap(), golden);
    assert_eq!(Trust::of(&built.parsed), trust);
    let without = Trust { allowed_envs: vec!["A".into()], ..trust };
    let failure = build(Some(&input(FILE)), Some("hello"), &options, &without).unwrap_err();
    assert!(failure.message.contains("TOKEN names no secret"), "{failure}");
}

#[test]
fn t12_t13_promises_that_no_guest_keeps_are_refused_before_a_boot() {
    let kms = r#""key_provider":"kms","key_provider_id":"3059""#;
    let built = |keys: &str| {
        let document = FILE_DOCUMENT.replacen('{', &format!("{{{keys},"), 1);
        build(Some(&input(&document)), None, &Document::default(), &Trust::default())
    };
    for (keys, words) in [
        (r#""secure_time":true"#.to_owned(), "authenticated time"),
        (r#""rollback":"warn""#.to_owned(), "needs key_provider kms"),
        (format!(r#""rollback":"refuse","no_instance_id":true,{kms}"#), "needs instance ids"),
    ] {
        let failure = built(&keys).unwrap_err();
        assert!(failure.message.contains(words), "{failure}");
    }
    assert!(built(&format!(r#""rollback":"refuse",{kms}"#)).is_ok());
}

const FILE_DOCUMENT: &str =
    r#"{"manifest_version":2,"name":"a","runner":"bash","bash_script":"true","kms_enabled":false}"#;
