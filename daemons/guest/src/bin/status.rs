// SPDX-License-Identifier: Apache-2.0
//! `dstack-status`: the boot's status, for the host and for the units of the boot.
//!
//! - `serve`: one connection of dstack-status.socket on standard input; only the host (CID 2) is served
//! - `report prepare`, `report app`: the boot failed there; adds the `ERROR` line unless the step that failed did, and
//!   prints its sentence
//! - `await-delivery`: until the host has been sent the `ERROR` line, at most 30 seconds
//! - `stopping`: the guest shuts down in order
//! - `clock`: sets a clock that is behind to what dstack-prepare knows to be past

use dstack_guest::follow;
use dstack_guest::layout::Layout;
use dstack_guest::status::{Reported, Status, Step};
use std::io;
use std::os::fd::AsFd;
use std::process::ExitCode;

const DELIVERY_SECONDS: i64 = 30;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let layout = Layout::default();
    let status = Status::new(&layout.status());
    let done = match words.as_slice() {
        ["serve"] => serve(&layout),
        ["report", "prepare"] => report(&status, Step::Prepare),
        ["report", "app"] => report(&status, Step::App),
        ["await-delivery"] => follow::await_delivery(&layout.delivered(), DELIVERY_SECONDS).map(drop),
        ["stopping"] => {
            status.stopping();
            Ok(())
        }
        ["clock"] => dstack_guest::clock::correct_by(&layout.clock_floor()),
        _ => {
            let words = "serve, report prepare, report app, await-delivery, stopping or clock";
            Err(io::Error::other(format!("use {words}")))
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("<3>{error}");
            ExitCode::FAILURE
        }
    }
}

/// T18: the host, and nobody else that reaches the port.
fn serve(layout: &Layout) -> io::Result<()> {
    let stdin = io::stdin();
    let peer = dstack_sys::vsock::peer(stdin.as_fd())?;
    if peer.cid != dstack_sys::vsock::HOST {
        return Err(io::Error::other(format!("CID {} is not the host", peer.cid)));
    }
    follow::serve(stdin.as_fd(), &layout.status(), &layout.delivered())
}

/// Prints a fixed sentence; the unit sends it to the console.
fn report(status: &Status, step: Step) -> io::Result<()> {
    let (failure, reported) = status.failure(step)?;
    if reported == Reported::No {
        status.error(failure);
    }
    println!("dstack: {}", failure.sentence());
    Ok(())
}
