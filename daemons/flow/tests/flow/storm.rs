// SPDX-License-Identifier: Apache-2.0
//! Very many bad clients, beside good ones that must not notice.

use crate::client::{client, hello, open};
use crate::hostile::{rest, script, works};
use crate::world::{BASE, World, connect, echo, id, instance};
use dstack_core::flow::Stats;
use rustix::io::ioctl_fionbio;
use rustix::net::sockopt::set_socket_linger;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// What a good client may have to wait, on a machine of any load; who stands in line behind a bad one waits longer.
const SOON: Duration = Duration::from_secs(2);
/// Descriptors of a process that are no connections.
const OTHER: u64 = 200;

/// The longest of so many good clients.
fn worst(world: &World, port: u16, count: usize) -> Duration {
    let one = |_| {
        let start = Instant::now();
        works(world, port);
        start.elapsed()
    };
    (0..count).map(one).max().unwrap()
}

/// So many connections, or as many as the limit of descriptors lets both sides have; a data plane reckons with two
/// sockets each, and a tenth for other things.
fn as_many_as_possible(wanted: u64) -> u64 {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
    let Some(most) = limit.maximum else { return wanted };
    let count = wanted.min((most - OTHER) * 9 / 10 / 2);
    if count < wanted {
        eprintln!("{count} connections instead of {wanted}: RLIMIT_NOFILE is {most}");
    }
    count
}

#[test]
fn ten_thousand_half_open_connections_cost_little_and_delay_nobody() {
    let count = as_many_as_possible(10_000);
    let port = echo("127.9.1.1");
    let world = World::new(script("127.9.1.1", 120_000));
    works(&world, port);
    world.counted(|s| s.counters.passed_through == 1 && s.counters.open == 0);
    let before = world.resident();
    let part = &hello(&format!("{}-{port}s.{BASE}", id(9)), None, 0)[..20];
    let half: Vec<TcpStream> = (0..count)
        .map(|number| {
            let mut stream = TcpStream::connect(world.ingress).unwrap();
            if number % 2 == 0 {
                stream.write_all(part).unwrap();
            }
            stream
        })
        .collect();
    world.counted(|s| (s.counters.half_open, s.counters.open) == (count, count));
    let each = world.resident().saturating_sub(before) / usize::try_from(count).unwrap();
    assert!(each < 4096, "{each} bytes each");
    let slowest = worst(&world, port, 50);
    assert!(slowest < SOON, "{slowest:?}");
    drop(half);
    world.counted(|s| {
        let c = &s.counters;
        (c.half_open, c.open, c.early_close, c.evicted) == (0, 0, count, 0)
    });
}

/// Connects, sends so much of a hello, perhaps waits for the answer, and resets.
fn reset(to: SocketAddr, bytes: &[u8], answer: bool) {
    let mut stream = connect(to);
    stream.write_all(bytes).unwrap();
    if answer {
        stream.read_exact(&mut [0]).unwrap();
    }
    set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
}

#[test]
fn storms_of_resets_leave_nothing_and_delay_nobody() {
    const EACH: usize = 250;
    let port = echo("127.9.2.1");
    let world = World::new(script("127.9.2.1", 60_000));
    let passed = hello(&format!("{}-{port}s.{BASE}", id(9)), None, 0);
    let ended = hello(&format!("{}-{port}.{BASE}", id(9)), None, 0);
    let slowest = std::thread::scope(|scope| {
        for (bytes, answer) in
            [(&passed[..0], false), (&passed[..9], false), (&passed, false), (&passed, true), (&ended, true)]
        {
            let to = world.ingress;
            scope.spawn(move || (0..EACH).for_each(|_| reset(to, bytes, answer)));
        }
        worst(&world, port, 100)
    });
    assert!(slowest < SOON, "{slowest:?}");
    world.counted(|s| {
        let c = &s.counters;
        (c.accepted, c.early_close + c.reset, c.open) == (5 * EACH as u64 + 100, 5 * EACH as u64, 0)
    });
}

#[test]
fn handshakes_stand_in_line_and_nobody_else() {
    const BURST: usize = 400;
    let port = echo("127.9.6.1");
    let world = World::new(script("127.9.6.1", 20_000));
    let name = format!("{}-{port}.{BASE}", id(9));
    let mut tls = open(world.ingress, &name, &client(false, &[]));
    let mut ping = || {
        let start = Instant::now();
        tls.write_all(b"ping").unwrap();
        tls.read_exact(&mut [0; 4]).unwrap();
        start.elapsed()
    };
    ping();
    let bytes = hello(&name, None, 0);
    let mut burst: Vec<_> = (0..BURST).map(|_| connect(world.ingress)).collect();
    burst.iter_mut().for_each(|stream| stream.write_all(&bytes).unwrap());
    let slowest = (0..50).map(|_| ping()).max().unwrap();
    assert!(slowest < SOON, "{slowest:?}");
    // Each comes to its turn; a whole client among them, too.
    works(&world, port);
    open(world.ingress, &name, &client(true, &[])).write_all(b"x").unwrap();
    for stream in &mut burst {
        let mut first = [0];
        stream.read_exact(&mut first).unwrap();
        assert_eq!(first, [22]);
    }
    // Some go while they wait, and leave nothing behind.
    let mut gone: Vec<_> = (0..BURST).map(|_| connect(world.ingress)).collect();
    gone.iter_mut().for_each(|stream| stream.write_all(&bytes).unwrap());
    gone.iter().for_each(|stream| set_socket_linger(stream, Some(Duration::ZERO)).unwrap());
    drop((gone, burst));
    world.counted(|s| {
        let c = &s.counters;
        (c.open, c.half_open, c.early_close, c.tls_failed) == (1, 0, 2 * BURST as u64, 0)
    });
    ping();
}

#[test]
fn who_trickles_is_let_go_at_the_same_deadline() {
    let port = echo("127.9.3.1");
    let world = World::new(script("127.9.3.1", 1_000));
    let bytes = hello(&format!("{}-{port}s.{BASE}", id(9)), None, 0);
    let start = Instant::now();
    let mut streams: Vec<_> = (0..50).map(|_| connect(world.ingress)).collect();
    // A byte is sent every time a good client was served.
    let mut sent = bytes.iter();
    while start.elapsed() < Duration::from_millis(800) {
        let byte = sent.next().unwrap();
        streams.iter_mut().for_each(|stream| stream.write_all(&[*byte]).unwrap());
        std::thread::sleep(Duration::from_millis(50));
        works(&world, port);
    }
    streams.iter().for_each(|stream| assert!(rest(stream).is_empty()));
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    let mut head = connect(world.http);
    head.write_all(b"GET / HTTP/1.1\r\nHost: ").unwrap();
    let answer = String::from_utf8(rest(&head)).unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    world.counted(|s| s.counters.hello_timeout == 51 && s.counters.open == 0);
}

/// A port at which connections are neither taken nor refused, as long as the sockets are kept.
fn black_hole(address: &str, port: u16) -> Vec<rustix::fd::OwnedFd> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with};
    let to = SocketAddr::new(address.parse().unwrap(), port);
    let socket = || {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).unwrap()
    };
    let listener = socket();
    bind(&listener, &to).unwrap();
    listen(&listener, 0).unwrap();
    let fill = |_| {
        let stream = socket();
        assert_eq!(rustix::net::connect(&stream, &to), Err(rustix::io::Errno::INPROGRESS));
        stream
    };
    let mut all: Vec<_> = (0..4).map(fill).collect();
    all.push(listener);
    all
}

#[test]
fn the_race_is_won_beside_a_dead_and_a_failing_instance() {
    let port = echo("127.9.4.2");
    let _hole = black_hole("127.9.4.4", port);
    for tried in [2, 3, 0] {
        let mut script = script("127.9.4.2", 5_000);
        // The newest does not answer, the next refuses; the third is alone.
        script.instances =
            vec![instance(2, 9, "127.9.4.2"), instance(3, 9, "127.9.4.3"), instance(4, 9, "127.9.4.4")];
        script.config.connect_top_n = tried;
        script.config.timeouts.connect = 60_000;
        let world = World::new(script);
        let slowest = worst(&world, port, 20);
        assert!(slowest < SOON, "{tried}: {slowest:?}");
        world.counted(|stats| {
            let of = |id: u8| stats.instances.iter().find(|i| i.instance == [id; 20].into());
            of(2).is_some_and(|i| i.connected == 20) && of(3).is_some_and(|i| i.failed >= 1)
        });
    }
}

/// More are silent than are tried at once: the next is tried beside them, long before the time to connect is over.
#[test]
fn silent_instances_do_not_stand_in_the_way_of_a_living_one() {
    let port = echo("127.9.7.2");
    let _holes = [black_hole("127.9.7.4", port), black_hole("127.9.7.5", port)];
    let mut script = script("127.9.7.2", 5_000);
    let at = |n: u8, address| instance(n, 9, address);
    script.instances = vec![at(2, "127.9.7.2"), at(4, "127.9.7.4"), at(5, "127.9.7.5")];
    script.config.connect_top_n = 1;
    script.config.timeouts.connect = 60_000;
    let world = World::new(script);
    let took = worst(&world, port, 1);
    assert!(took >= Duration::from_millis(800) && took < Duration::from_secs(5), "{took:?}");
    // The silent ones are tried last from now on.
    let of = |stats: &Stats, id: u8| stats.instances.iter().find(|i| i.instance == [id; 20].into()).copied();
    world.counted(|stats| {
        of(stats, 2).is_some_and(|i| (i.connected, i.failed) == (1, 0))
            && [4, 5].iter().all(|id| of(stats, *id).is_some_and(|i| (i.connected, i.failed) == (0, 1)))
    });
}

#[test]
fn where_nobody_answers_the_client_hears_it_in_time() {
    let port = echo("127.9.5.2");
    let _hole = black_hole("127.9.5.4", port);
    let mut script = script("127.9.5.2", 5_000);
    script.instances = vec![instance(4, 9, "127.9.5.4")];
    script.config.timeouts.connect = 500;
    let world = World::new(script);
    let mut stream = connect(world.ingress);
    stream.write_all(&hello(&format!("{}-{port}s.{BASE}", id(9)), None, 0)).unwrap();
    assert_eq!(rest(&stream), [21, 3, 3, 0, 2, 2, 80]);
    world.counted(|s| s.counters.connect_timeout == 1 && s.instances.iter().any(|i| i.failed == 1));
}

/// How long one client waits that is passed through and hears its own words.
fn served(at: SocketAddr, hello: &[u8]) -> Duration {
    let start = Instant::now();
    let mut stream = connect(at);
    stream.write_all(hello).unwrap();
    let mut back = vec![0; hello.len()];
    stream.read_exact(&mut back).unwrap();
    start.elapsed()
}

/// systemd does this to a socket when it passes it to a service without NonBlocking=, such as another generation.
#[test]
fn a_socket_that_is_made_to_block_holds_nobody_up() {
    let port = echo("127.9.9.1");
    let world = World::new(script("127.9.9.1", 5_000));
    let (at, listener) = (world.ingress, world.listener(world.ingress));
    let bytes = hello(&format!("{}-{port}s.{BASE}", id(9)), None, 0);
    // Both workers wake for a burst, and one comes late now and then; nobody comes after a burst to wake it again.
    for _ in 0..500 {
        ioctl_fionbio(&listener, false).unwrap();
        let longest = std::thread::scope(|scope| {
            let all: Vec<_> = (0..6).map(|_| scope.spawn(|| served(at, &bytes))).collect();
            all.into_iter().map(|one| one.join().unwrap()).max().unwrap()
        });
        assert!(longest < SOON, "{longest:?}");
    }
}
