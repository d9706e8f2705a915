// SPDX-License-Identifier: Apache-2.0
//! From a daemon that is not configured to certificates, renewals and failures.

use crate::servers::kdig;
use crate::world::{World, text};
use dstack_service::api::certbot1::{Error, Options};
use futures_util::StreamExt;
use std::fs::File;
use std::io::Read;

fn read(fd: zbus::OwnedFd) -> String {
    let mut text = String::new();
    File::from(std::os::fd::OwnedFd::from(fd)).read_to_string(&mut text).unwrap();
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unconfigured_daemon_says_so_and_does_no_harm() {
    let mut world = World::unconfigured().await;
    world.start().await;
    assert!(!world.manager.configured().await.unwrap());
    assert!(world.manager.status().await.unwrap().contains("/etc/dstack/certbot.toml"));
    assert!(matches!(world.manager.list_certificates().await, Err(Error::NotConfigured(_))));
    assert!(world.run(&["request", "renew"]).status.success(), "its timers have nothing to do");
    assert!(world.run(&["request", "rehearse"]).status.success());
    assert_eq!(std::fs::read_dir(world.path("state")).unwrap().count(), 0);
    // A missing credential is said, too.
    world.configure("dstack");
    std::fs::remove_file(world.path("credentials/certbot-tsig")).unwrap();
    world.manager.reload().await.unwrap();
    let status = world.manager.status().await.unwrap();
    assert!(status.contains("certbot-tsig") && status.contains("systemd-creds"), "{status}");
    // A wrong key is refused, and what was in force stays.
    world.configure("dstack");
    world.manager.reload().await.unwrap();
    std::fs::write(world.path("etc/certbot.toml"), "domian = \"x\"\n").unwrap();
    let error = world.manager.reload().await.unwrap_err();
    assert!(matches!(&error, Error::Misconfigured(text) if text.contains("domian")), "{error}");
    assert!(world.manager.configured().await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timer_gets_a_certificate_and_the_ingress_is_told() {
    let mut world = World::new().await;
    let mut changed = world.manager.receive_certificate_changed().await.unwrap();
    assert_eq!(text(&world.manager.list_certificates().await.unwrap()[0], "state"), "missing");
    assert!(matches!(world.manager.get_certificate("").await, Err(Error::NoCertificate(_))));
    let output = world.run(&["request", "renew"]);
    assert!(output.status.success(), "{output:?}");
    let signal = changed.next().await.unwrap();
    let args = signal.args().unwrap();
    assert_eq!(args.domain, "apps.example.test");
    let row = world.manager.list_certificates().await.unwrap().remove(0);
    assert_eq!((text(&row, "state"), text(&row, "domain")), ("valid".into(), "apps.example.test".into()));
    let (chain, key) = world.manager.get_certificate("apps.example.test").await.unwrap();
    assert_eq!(read(chain), std::fs::read_to_string(world.path("state/live/cert.pem")).unwrap());
    assert_eq!(read(key), std::fs::read_to_string(world.path("state/live/key.pem")).unwrap());
    assert_eq!(world.manager.historical_keys("").await.unwrap(), std::slice::from_ref(&args.public_key));
    let account = world.manager.account_uri().await.unwrap();
    assert!(kdig(world.dns, "apps.example.test", "CAA")[0].contains(&account), "{account}");
    // Nothing is due, so nothing is done; forced it is, with a new key; and a restart knows all of it.
    assert!(world.run(&["request", "renew"]).status.success());
    let mut ended = world.manager.receive_job_removed().await.unwrap();
    let options = Options::from([("force", true.into())]);
    world.manager.renew("apps.example.test", options).await.unwrap();
    assert_eq!(ended.next().await.unwrap().args().unwrap().result, "done");
    assert_ne!(changed.next().await.unwrap().args().unwrap().public_key, args.public_key);
    // Settings are read again in mid-job, and the next job waits for that one.
    let forced = || Options::from([("force", true.into())]);
    world.manager.renew("", forced()).await.unwrap();
    world.manager.reload().await.unwrap();
    world.manager.renew("", forced()).await.unwrap();
    for _ in 0..2 {
        assert_eq!(ended.next().await.unwrap().args().unwrap().result, "done");
    }
    world.start().await;
    assert_eq!(world.manager.historical_keys("").await.unwrap().len(), 4);
    assert_eq!(world.manager.account_uri().await.unwrap(), account);
    assert!(world.run(&["request", "rehearse"]).status.success());
    assert!(world.manager.last_rehearsal().await.unwrap().0 > 0);
}

/// The daemon is killed in mid-job and started again with settings that work: the timer's unit asks it again.
#[tokio::test(flavor = "multi_thread")]
async fn a_timer_outlives_a_restart_of_the_daemon_in_mid_job() {
    let mut world = World::unconfigured().await;
    world.configure("dstack");
    let good = std::fs::read_to_string(world.path("etc/certbot.toml")).unwrap();
    // It takes the connection and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = std::fs::read_to_string(world.path("url")).unwrap();
    let hanging = good.replace(&url, &format!("https://{}/dir", silent.local_addr().unwrap()));
    std::fs::write(world.path("etc/certbot.toml"), hanging).unwrap();
    world.start().await;
    let mut begun = world.manager.receive_job_new().await.unwrap();
    let asking = world.spawn(&["request", "renew"]);
    begun.next().await.unwrap();
    std::fs::write(world.path("etc/certbot.toml"), good).unwrap();
    world.start().await;
    let output = tokio::task::spawn_blocking(|| asking.wait_with_output().unwrap());
    let output = tokio::time::timeout(std::time::Duration::from_secs(60), output).await.unwrap().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(text(&world.manager.list_certificates().await.unwrap()[0], "state"), "valid");
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_signals_rows_and_exit_statuses() {
    let mut world = World::unconfigured().await;
    world.configure("unknown");
    world.start().await;
    let (mut failed, mut rehearsal) = (
        world.manager.receive_renewal_failed().await.unwrap(),
        world.manager.receive_rehearsal_failed().await.unwrap(),
    );
    assert!(!world.run(&["request", "renew"]).status.success(), "OnFailure= of the unit is what tells");
    let reason = failed.next().await.unwrap().args().unwrap().reason.clone();
    assert!(reason.contains("certbot-tsig"), "{reason}");
    let row = world.manager.list_certificates().await.unwrap().remove(0);
    assert_eq!((text(&row, "state"), text(&row, "error")), ("renewal-failed".into(), reason));
    assert!(u64::try_from(row["retry"].clone()).unwrap() > 0);
    assert!(world.run(&["request", "renew"]).status.success(), "it waits, and has told");
    assert!(!world.run(&["request", "rehearse"]).status.success());
    assert!(!rehearsal.next().await.unwrap().args().unwrap().reason.is_empty());
    assert_eq!(world.manager.last_rehearsal().await.unwrap().1.len(), 1);
    assert!(world.manager.status().await.unwrap().contains("the last rehearsal failed"));
    assert!(matches!(
        world.manager.renew("other.example", Options::new()).await,
        Err(Error::NoSuchCertificate(_))
    ));
    let wrong = Options::from([("now", true.into())]);
    assert!(matches!(world.manager.renew("", wrong).await, Err(Error::InvalidArgument(_))));
}

/// Whatever ails the settings, the ingress and auditors get what is there, and the timers' units fail, which is an alert.
#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_served_without_credentials_and_with_broken_settings() {
    let mut world = World::new().await;
    assert!(world.run(&["request", "renew"]).status.success());
    let (keys, account) =
        (world.manager.historical_keys("").await.unwrap(), world.manager.account_uri().await.unwrap());
    let good = std::fs::read_to_string(world.path("etc/certbot.toml")).unwrap();
    let broken = format!("domian = \"x\"\n{good}");
    for (settings, credential, named) in [(&good, None, "certbot-tsig"), (&broken, Some("x"), "domian")] {
        std::fs::write(world.path("etc/certbot.toml"), settings).unwrap();
        match credential {
            None => std::fs::remove_file(world.path("credentials/certbot-tsig")).unwrap(),
            Some(_) => {
                std::fs::write(world.path("credentials/certbot-tsig"), crate::servers::SECRET).unwrap()
            }
        }
        world.start().await;
        let status = world.manager.status().await.unwrap();
        assert!(status.starts_with("Misconfigured: ") && status.contains(named), "{status}");
        assert!(status.contains("systemctl restart dstack-certbot") && !status.contains('\n'), "{status}");
        assert!(!world.manager.configured().await.unwrap());
        for name in ["", "apps.example.test", "*.apps.example.test"] {
            let (chain, _) = world.manager.get_certificate(name).await.unwrap();
            assert_eq!(read(chain), std::fs::read_to_string(world.path("state/live/cert.pem")).unwrap());
        }
        assert!(matches!(
            world.manager.get_certificate("other.example").await,
            Err(Error::NoSuchCertificate(_))
        ));
        assert_eq!(world.manager.historical_keys("").await.unwrap(), keys);
        assert_eq!(world.manager.historical_keys("apps.example.test").await.unwrap(), keys);
        assert_eq!(world.manager.account_uri().await.unwrap(), account);
        let error = world.manager.list_certificates().await.unwrap_err();
        assert!(matches!(&error, Error::Misconfigured(text) if text.contains(named)), "{error}");
        assert!(!world.run(&["request", "renew"]).status.success());
    }
    std::fs::write(world.path("etc/certbot.toml"), good).unwrap();
    world.manager.reload().await.unwrap();
    assert!(world.manager.configured().await.unwrap());
    assert_eq!(text(&world.manager.list_certificates().await.unwrap()[0], "state"), "valid");
}

/// Yesterday's certificate is no valid one, whatever else is well.
#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_is_called_that() {
    let world = World::new().await;
    world.store_certificate("*.apps.example.test", -1);
    let row = world.manager.list_certificates().await.unwrap().remove(0);
    assert_eq!((text(&row, "state"), text(&row, "error")), ("expired".into(), String::new()));
    let status = world.manager.status().await.unwrap();
    assert_eq!(status, "0 of 1 certificates; 1 expired");
    assert!(world.run(&["request", "renew"]).status.success());
    assert_eq!(text(&world.manager.list_certificates().await.unwrap()[0], "state"), "valid");
}

/// The tutorial's commands, without the daemon.
#[tokio::test(flavor = "multi_thread")]
async fn the_tutorials_commands_work_without_the_daemon() {
    let world = World::unconfigured().await;
    world.configure("dstack");
    let config = world.path("etc/certbot.toml").display().to_string();
    let work = format!(
        "workdir = \"{}\"\n{}",
        world.path("state").display(),
        std::fs::read_to_string(&config).unwrap()
    );
    std::fs::write(&config, work).unwrap();
    for arguments in [
        &["init", "-c", &config] as &[&str],
        &["set-caa", "-c", &config],
        &["renew", "-c", &config, "--once"],
        &["renew", "-c", &config, "--force"],
    ] {
        let output = world.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(std::fs::read_dir(world.path("state/backup")).unwrap().count(), 2);
    assert_eq!(kdig(world.dns, "apps.example.test", "CAA").len(), 2);
    let template = world.run(&["cfg"]).stdout;
    let file = world.path("new.toml").display().to_string();
    assert!(world.run(&["cfg", "--write-to", &file]).status.success());
    assert_eq!(std::fs::read(&file).unwrap(), template);
    assert!(!world.run(&["cfg", "--write-to", &file]).status.success(), "it replaces nothing");
    assert!(world.run(&["alert", "dstack-certbot-renew.service"]).status.success());
}

/// As root in the service's directory: files that the service could not write would be the end of its renewals.
#[tokio::test(flavor = "multi_thread")]
async fn commands_leave_the_services_directory_alone() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: without root nothing can be somebody else's");
        return;
    }
    let world = World::unconfigured().await;
    world.configure("dstack");
    let config = world.path("etc/certbot.toml").display().to_string();
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, format!("workdir = \"{}\"\n{text}", world.path("state").display())).unwrap();
    std::os::unix::fs::chown(world.path("state"), Some(65534), Some(65534)).unwrap();
    for (arguments, instead) in [
        (&["init", "-c", &config] as &[&str], "dstackctl cert renew"),
        (&["set-caa", "-c", &config], "dstackctl cert caa"),
        (&["renew", "-c", &config, "--once"], "dstackctl cert renew"),
        (&["renew", "-c", &config], "dstackctl cert renew"),
    ] {
        let output = world.run(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(instead) && said.contains("65534"), "{said}");
    }
    assert_eq!(std::fs::read_dir(world.path("state")).unwrap().count(), 0, "nothing was written");
}
