// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used)]
use super::*;

const ID: &str = "3327603e03f5bd1f830812ca4a789277fc31f577";
const BASE: &str = "app.example.com";

/// `@` stands for the id. `t`, `h`, `p`: mode and port; `c`: custom; `-`: refused.
const TABLE: &[(&str, &str)] = &[
    ("@.app.example.com", "t80"),
    ("@-80.app.example.com", "t80"),
    ("@-8080.app.example.com", "t8080"),
    ("@-1.app.example.com", "t1"),
    ("@-65535.app.example.com", "t65535"),
    ("@-443.app.example.com", "t443"),
    ("@s.app.example.com", "p443"),
    ("@-s.app.example.com", "p443"),
    ("@-443s.app.example.com", "p443"),
    ("@-8443s.app.example.com", "p8443"),
    ("@-80s.app.example.com", "p80"),
    ("@-1s.app.example.com", "p1"),
    ("@-65535s.app.example.com", "p65535"),
    ("@-g.app.example.com", "h80"),
    ("@-80g.app.example.com", "h80"),
    ("@-50051g.app.example.com", "h50051"),
    ("@.APP.Example.COM", "t80"),
    ("@-8080S.app.example.com", "p8080"),
    ("@S.app.example.com", "p443"),
    ("@-8080G.app.example.com", "h8080"),
    ("@.app.example.com.", "t80"),
    ("@-0.app.example.com", "-"),
    ("@-00080.app.example.com", "-"),
    ("@-080.app.example.com", "-"),
    ("@-65536.app.example.com", "-"),
    ("@-99999999999999999999.app.example.com", "-"),
    ("@-.app.example.com", "-"),
    ("@--80.app.example.com", "-"),
    ("@-80-s.app.example.com", "-"),
    ("@-80-443.app.example.com", "-"),
    ("@-80ss.app.example.com", "-"),
    ("@-80gs.app.example.com", "-"),
    ("@-80sg.app.example.com", "-"),
    ("@-80gg.app.example.com", "-"),
    ("@-ss.app.example.com", "-"),
    ("@-sg.app.example.com", "-"),
    ("@ss.app.example.com", "-"),
    ("@g.app.example.com", "-"),
    ("@-80x.app.example.com", "-"),
    ("@-x.app.example.com", "-"),
    ("@-+80.app.example.com", "-"),
    ("@-8_0.app.example.com", "-"),
    ("@-s80.app.example.com", "-"),
    ("@_80.app.example.com", "-"),
    ("a.@.app.example.com", "-"),
    ("www.app.example.com", "-"),
    ("s.app.example.com", "-"),
    ("-80.app.example.com", "-"),
    ("-.app.example.com", "-"),
    ("app.example.com", "-"),
    (".app.example.com", "-"),
    ("3327603e.app.example.com", "-"),
    ("3327603e03f5bd1f830812ca4a789277fc31f57.app.example.com", "-"),
    ("3327603e03f5bd1f830812ca4a789277fc31f5777.app.example.com", "-"),
    ("0x27603e03f5bd1f830812ca4a789277fc31f577.app.example.com", "-"),
    ("zz27603e03f5bd1f830812ca4a789277fc31f577.app.example.com", "-"),
    ("0x@.app.example.com", "-"),
    ("@.app.example.org", "c"),
    ("@.example.com", "c"),
    ("@.xapp.example.com", "c"),
    ("@app.example.com", "c"),
    ("xapp.example.com", "c"),
    ("my-site.net", "c"),
    ("www.my-site.net", "c"),
    ("example.com", "c"),
    ("localhost", "c"),
    ("app.example.com.evil.net", "c"),
];

fn short(result: &Result<Route, RouteError>) -> String {
    match result {
        Ok(Route::App { id, port, mode }) => {
            assert_eq!(id.to_string(), ID);
            let letter = match mode {
                Mode::Terminate => 't',
                Mode::TerminateHttp2 => 'h',
                Mode::Passthrough => 'p',
            };
            format!("{letter}{port}")
        }
        Ok(Route::Custom(_)) => "c".into(),
        Err(_) => "-".into(),
    }
}

#[test]
fn every_name_leads_where_the_table_says() {
    assert!(TABLE.len() >= 60);
    for (name, expected) in TABLE {
        let name = name.replace('@', ID);
        assert_eq!(short(&route(&name, BASE)), *expected, "{name}");
    }
}

#[test]
fn custom_names_are_lower_case_without_the_final_dot() {
    assert_eq!(route("WWW.Site.NET.", BASE), Ok(Route::Custom("www.site.net".into())));
}

#[test]
fn txt_values() {
    let (id, port) = parse_txt(&format!("{ID}:8043")).unwrap();
    assert_eq!((id.to_string().as_str(), port), (ID, 8043));
    assert!(parse_txt(&format!(" {}:1 ", ID.to_uppercase())).is_ok());
    for bad in
        ["", ":", ID, &format!("{ID}:"), &format!("{ID}:0"), &format!("{ID}:70000"), &format!("{ID}:80:1")]
    {
        assert!(matches!(parse_txt(bad), Err(RouteError::Txt(_))), "{bad}");
    }
    for bad in ["127.0.0.1:80", "localhost:22", &format!("0x{ID}:80"), &format!("{ID} :80"), &"a".repeat(65)]
    {
        assert!(matches!(parse_txt(bad), Err(RouteError::Txt(_))), "{bad}");
    }
}

#[test]
fn where_tls_is_always_passed_through_only_the_port_matters() {
    for (name, expected) in TABLE {
        let name = name.replace('@', ID);
        let found = short(&route_passthrough(&name, BASE));
        let wanted = match expected.split_at(1) {
            (kind, "80") if kind != "p" && !name.contains("-80") => "p443".to_owned(),
            ("t" | "h", port) => format!("p{port}"),
            _ => (*expected).to_owned(),
        };
        assert_eq!(found, wanted, "{name}");
    }
}

#[test]
fn a_bare_id_leads_to_the_agent_by_http() {
    for (name, expected) in [
        ("@.app.example.com", "p8090"),
        ("@-8080.app.example.com", "p8080"),
        ("@-80.app.example.com", "p80"),
        ("@-g.app.example.com", "p80"),
        ("@s.app.example.com", "p443"),
        ("@-0.app.example.com", "-"),
        ("example.org", "c"),
    ] {
        let name = name.replace('@', ID);
        assert_eq!(short(&route_http(&name, BASE, 8090)), expected, "{name}");
    }
}
