// SPDX-License-Identifier: Apache-2.0
//! The program is killed at each of its requests, by the server that it asks: nothing is lost, and nobody waits for ever.

use crate::certs::{issue, key_id};
use crate::crtsh::{State, answer};
use crate::server::{Handler, Server};
use crate::world::{NAMES, OTHERS, OURS, THEIRS};
use std::process::Stdio;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// Runs the program once; gives its exit code, `None` when it was killed, and what it said.
async fn run(url: &str, state: &std::path::Path, pid: &AtomicI32) -> (Option<i32>, String) {
    let child = tokio::process::Command::new(env!("CARGO_BIN_EXE_dstack-ct-monitor"))
        .args([
            "--once",
            "-d",
            "apps.example.com",
            "--known-key",
            &key_id(&OURS),
            "--crtsh-url",
            url,
            "--state",
        ])
        .arg(state)
        .env_remove("JOURNAL_STREAM")
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    pid.store(i32::try_from(child.id().unwrap()).unwrap(), Ordering::SeqCst);
    let output = child.wait_with_output().await.unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn p30_a_kill_at_any_request_loses_no_alert() {
    let state = Arc::<Mutex<State>>::default();
    let certificates = [(9, &OURS, 1), (8, &THEIRS, 2), (7, &THEIRS, 3), (6, &OTHERS, 4), (5, &OURS, 5)];
    for (id, key, serial) in certificates {
        state.lock().unwrap().listed.insert(id, issue(key, &NAMES, serial, 0, false));
    }
    let (pid, left) = (Arc::new(AtomicI32::new(0)), Arc::new(AtomicUsize::new(0)));
    let (shared, victim, countdown) = (Arc::clone(&state), Arc::clone(&pid), Arc::clone(&left));
    let handler: Handler = Arc::new(move |target| {
        if countdown.fetch_sub(1, Ordering::SeqCst) == 1 {
            let pid = rustix::process::Pid::from_raw(victim.load(Ordering::SeqCst)).unwrap();
            // It may be gone by now, which is as good.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        answer(&shared.lock().unwrap(), target)
    });
    let server = Server::start(handler).await;
    for first in 1..=6 {
        let dir = tempfile::tempdir().unwrap();
        let (mut said, mut killed) = (String::new(), 0);
        let code = loop {
            // The first kill comes at this request, the next ones at the third of each run, so that each gets further.
            left.store(if killed == 0 { first } else { 3 }, Ordering::SeqCst);
            let (code, words) = run(&server.url, dir.path(), &pid).await;
            said += &words;
            match code {
                Some(code) => break code,
                None => killed += 1,
            }
            assert!(killed < 20, "it does not get on: {said}");
        };
        assert!(killed > 0, "nobody was killed at {first}");
        assert_eq!(code, 3, "{said}");
        for key in [&*THEIRS, &*OTHERS] {
            assert!(said.matches(&format!("DSTACK_ALERT=\"{}\"", key_id(key))).count() >= 1, "{said}");
        }
        let kept = std::fs::read_to_string(dir.path().join("alerts.json")).unwrap();
        assert_eq!(kept.matches("\"told\": true").count(), 2, "{kept}");
        left.store(0, Ordering::SeqCst);
        let before = server.take().len();
        let (code, again) = run(&server.url, dir.path(), &pid).await;
        assert_eq!(
            (code, server.take().len()),
            (Some(3), 2),
            "two searches and no download; {before} {again}"
        );
        assert!(!again.contains("DSTACK_ALERT"), "told twice: {again}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_exit_status_says_what_was_found() {
    let state = Arc::<Mutex<State>>::default();
    state.lock().unwrap().listed.insert(1, issue(&OURS, &NAMES, 1, 0, false));
    let shared = Arc::clone(&state);
    let handler: Handler = Arc::new(move |target| answer(&shared.lock().unwrap(), target));
    let (server, pid) = (Server::start(handler).await, AtomicI32::new(0));
    let fresh = || tempfile::tempdir().unwrap();
    let (code, said) = run(&server.url, fresh().path(), &pid).await;
    assert_eq!(code, Some(0), "{said}");
    state.lock().unwrap().listed.insert(2, issue(&THEIRS, &NAMES, 2, 0, false));
    assert_eq!(run(&server.url, fresh().path(), &pid).await.0, Some(3));
    let page = crate::server::Reply::page(502, "Bad Gateway");
    state.lock().unwrap().faults.push(("?q=".into(), page));
    let (code, said) = run(&server.url, fresh().path(), &pid).await;
    assert!(code == Some(1) && said.contains("Bad Gateway"), "{said}");
}
