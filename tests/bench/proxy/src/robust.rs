// SPDX-License-Identifier: Apache-2.0
//! Hostile and unusual clients: does the proxy cope, and does it let go?

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{json, Value};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::backend::{frame, ECHO, FRAME};
use crate::client::Target;
use crate::load;
use crate::net::{client_hello, ClientOpts, Pki};
use crate::process::Running;

/// How long a stalled client waits to be thrown out before we give up.
const PATIENCE: Duration = Duration::from_secs(35);

/// Connect, send `bytes`, and wait for the proxy to end it.
async fn until_closed(t: &Target, bytes: &[u8]) -> String {
    let r: Result<String> = async {
        let mut s = TcpStream::connect(t.addr).await?;
        s.set_nodelay(true)?;
        s.write_all(bytes).await?;
        let start = Instant::now();
        let mut buf = [0u8; 4096];
        let mut got = 0;
        let how = loop {
            match timeout(PATIENCE.saturating_sub(start.elapsed()), s.read(&mut buf)).await {
                Err(_) => return Ok(format!("still open after {} s", PATIENCE.as_secs())),
                Ok(Ok(0)) => break "closed",
                Ok(Err(_)) => break "reset",
                Ok(Ok(n)) => {
                    if got == 0 && buf[0] == 21 && n >= 7 {
                        return Ok(format!(
                            "alert {} after {:.1} s",
                            buf[6],
                            start.elapsed().as_secs_f64()
                        ));
                    }
                    got += n;
                }
            }
        };
        let extra = if got > 0 {
            format!(" ({got} bytes answered)")
        } else {
            String::new()
        };
        Ok(format!(
            "{how} after {:.1} s{extra}",
            start.elapsed().as_secs_f64()
        ))
    }
    .await;
    r.unwrap_or_else(|e| format!("error: {e:#}"))
}

/// Send `hello` in the given pieces with pauses, then one request.
async fn pieces(t: &Target, hello: &[u8], piece: usize, pause: Duration) -> String {
    let r: Result<()> = async {
        let mut s = TcpStream::connect(t.addr).await?;
        s.set_nodelay(true)?;
        for c in hello.chunks(piece) {
            s.write_all(c).await?;
            sleep(pause).await;
        }
        s.write_all(&frame(ECHO, 0)).await?;
        let mut f = [0u8; FRAME];
        timeout(Duration::from_secs(10), s.read_exact(&mut f)).await??;
        Ok(())
    }
    .await;
    verdict(r)
}

fn verdict(r: Result<()>) -> String {
    match r {
        Ok(()) => "ok".into(),
        Err(e) => format!("FAIL: {e:#}"),
    }
}

/// All checks on one path (passthrough or termination) of one proxy.
pub async fn run(p: &mut Running, good: &Target, raw: bool, pki: &Pki) -> Result<Value> {
    let cfg = |o: ClientOpts| pki.client(o);
    let plain = cfg(ClientOpts::default())?;
    let hello = client_hello(&plain, &good.sni)?;
    let with = |o: ClientOpts, sni: &str| -> Result<Target> {
        let tls = cfg(o)?;
        Ok(Target {
            sni: sni.to_string(),
            hello: client_hello(&tls, sni)?.into(),
            tls,
            ..good.clone()
        })
    };
    let mut v = json!({});

    // Unusual but legal: must work.
    v["good"] = json!(verdict(load::check(good).await));
    let frag = with(
        ClientOpts {
            max_fragment: Some(64),
            ..Default::default()
        },
        &good.sni,
    )?;
    v["hello_in_many_records"] = json!(verdict(load::check(&frag).await));
    for (name, alpn) in [("hello_6k", 60), ("hello_14k", 145)] {
        let big = with(
            ClientOpts {
                alpn_padding: alpn,
                ..Default::default()
            },
            &good.sni,
        )?;
        v[name] = json!(verdict(load::check(&big).await));
    }
    v["sni_upper_case"] = json!(verdict(
        load::check(&with(ClientOpts::default(), &good.sni.to_uppercase())?).await
    ));
    if raw {
        v["hello_over_3_s"] = json!(
            pieces(
                good,
                &hello,
                hello.len() / 30 + 1,
                Duration::from_millis(100)
            )
            .await
        );
    }
    let r: Result<()> = async {
        let mut c = good.open().await?;
        c.echo_half_closed().await
    }
    .await;
    v["half_close"] = json!(verdict(r));

    // Hostile: must be let go of. These wait, so they run side by side.
    let unknown = client_hello(&plain, &format!("{}x{}", "0".repeat(38), &good.sni[39..]))?;
    let no_sni = client_hello(
        &cfg(ClientOpts {
            no_sni: true,
            ..Default::default()
        })?,
        &good.sni,
    )?;
    let mut huge = vec![22, 3, 1, 0xff, 0xff];
    huge.extend([1u8; 3000]);
    let noise: Vec<u8> = (0..4096u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let trickle = async {
        // a byte every 250 ms: never idle, never finished
        let r: Result<String> = async {
            let mut s = TcpStream::connect(good.addr).await?;
            s.set_nodelay(true)?;
            let start = Instant::now();
            let mut buf = [0u8; 64];
            for b in hello.iter().take(140) {
                if s.write_all(&[*b]).await.is_err() {
                    break;
                }
                if timeout(Duration::from_millis(250), s.read(&mut buf))
                    .await
                    .is_ok()
                {
                    return Ok(format!(
                        "closed after {:.1} s",
                        start.elapsed().as_secs_f64()
                    ));
                }
            }
            Ok(format!(
                "still open after {:.0} s",
                start.elapsed().as_secs_f64()
            ))
        }
        .await;
        r.unwrap_or_else(|e| format!("error: {e:#}"))
    };
    let (a, b, c, d, e, f, g, h) = tokio::join!(
        until_closed(good, &[]),
        until_closed(good, &hello[..20]),
        trickle,
        until_closed(good, &no_sni),
        until_closed(good, &unknown),
        until_closed(good, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
        until_closed(good, &noise),
        until_closed(good, &huge),
    );
    v["silent"] = json!(a);
    v["stalled_hello"] = json!(b);
    v["trickled_hello"] = json!(c);
    v["no_sni"] = json!(d);
    v["unknown_name"] = json!(e);
    v["http_request"] = json!(f);
    v["noise"] = json!(g);
    v["record_65535"] = json!(h);

    // 2,000 stalled clients at once: do the others still get through?
    let mut stalled = Vec::new();
    for _ in 0..2000 {
        let Ok(Ok(mut s)) = timeout(Duration::from_secs(2), TcpStream::connect(good.addr)).await
        else {
            break;
        };
        let _ = s.write_all(&hello[..20]).await;
        stalled.push(s);
    }
    let r = load::connections(
        None,
        std::slice::from_ref(good),
        200,
        4,
        Duration::from_secs(20),
    )
    .await?;
    v["under_2000_stalled"] = json!(format!(
        "{} of 200 ok, p99 {:.1} ms ({} stalled)",
        r["ok"],
        r["p99_ms"].as_f64().unwrap_or(f64::NAN),
        stalled.len()
    ));
    drop(stalled);
    sleep(Duration::from_millis(300)).await;
    if raw {
        // last, since there is a proxy that does not survive it
        v["alive_before_byte_by_byte"] = json!(p.alive());
        v["hello_byte_by_byte"] = json!(pieces(good, &hello, 1, Duration::from_millis(2)).await);
    }
    v["alive_after"] = json!(p.alive());
    v["good_after"] = json!(verdict(load::check(good).await));
    Ok(v)
}
