// SPDX-License-Identifier: Apache-2.0
//! `init`: sets a host up, from answers to a host that `doctor` finds well.
//!
//! - pure: [`draft`] (answers as given) -> [`answers`] (checked by [`rules`]) -> [`settings`] (files) -> [`plan`] (steps);
//!   [`diff`] and [`show`] for people
//! - looking: [`found`], [`secrets`]; asking: [`ask`]
//! - doing: [`hands`] over [`files`], [`systemd`] and [`certificate`]
//!
//! It may be interrupted at any step, and is simply run again: what is left is found by looking, see [`plan`].

pub mod answers;
pub mod ask;
pub mod certificate;
pub mod diff;
pub mod draft;
pub mod files;
pub mod found;
pub mod hands;
pub mod named;
pub mod plan;
mod rules;
pub mod secrets;
pub mod settings;
pub mod show;
pub mod systemd;
pub mod units;

use crate::cli::Global;
use crate::cli_init::{Init, option_of};
use crate::client::Client;
use crate::doctor;
use crate::errors::{Exit, Failure};
use crate::kms_rpc::TRUST_ROOTS;
use crate::output::{Ui, note};
use crate::places;
use crate::progress::Progress;
use crate::realm::{self, Thought};
use answers::{AnswerError, Answers, Defaults};
use ask::{Asker, Terminal};
use draft::Draft;
use dstack_ra_tls::Roots;
use files::Root;
use found::Secrets;
use hands::Host;
use plan::{Found, Goal, Step};
use serde_json::{Map, Value, json};
use std::io::{IsTerminal, Read};
use std::path::Path;
use std::process::ExitCode;
use systemd::Systemd;

const TEMPLATE_HEAD: &str = "\
# Answers for `dstackctl init --answers FILE`. Lines with # are what counts when nothing is answered, or examples; only
# base_domain must be answered. Secrets are in files of their own, which are named here.";

impl From<AnswerError> for Failure {
    fn from(error: AnswerError) -> Self {
        let option = option_of(error.key).map(|option| format!("by {option}, ")).unwrap_or_default();
        Self::usage(error.to_string()).hint(format!(
            "answer {} in the file of --answers, {option}or to a question on a terminal",
            error.key
        ))
    }
}

/// Carries out `init`.
///
/// # Errors
/// A wrong answer, a step that failed, or nobody who agrees.
pub async fn run(args: &Init, global: &Global, ui: &Ui) -> Result<ExitCode, Failure> {
    if let Some(host) = &global.host {
        return Err(Failure::usage("init works only on the host itself")
            .hint(format!("ssh -t {host} sudo dstackctl init")));
    }
    let (root, defaults) = (Root::default(), found::defaults());
    if args.print_answers {
        return print_answers(args, &root, &defaults, ui).map(|()| ExitCode::SUCCESS);
    }
    let is_root = rustix::process::geteuid().is_root();
    if !is_root && !args.dry_run {
        return Err(Failure::with(Exit::Denied, "init writes settings of this host, which only root may")
            .hint("sudo dstackctl init …; or see what it would do: dstackctl init --dry-run …"));
    }
    let is_asked = std::io::stdin().is_terminal() && args.answers.is_none() && !args.yes;
    let mut terminal = is_asked.then_some(Terminal);
    let answers = answers(args, &root, &defaults, terminal.as_mut().map(|t| t as &mut dyn Asker))?;
    named::check(&answers, &root).or_else(|failure| unreadable(failure, is_root))?;
    let _lock = if args.dry_run { None } else { Some(files::lock(&root)?) };
    let asker = terminal.as_mut().map(|t| t as &mut dyn Asker);
    let work = Work::look(global, &answers, root, asker, args.dry_run).await?;
    work.run(args, global, ui).await
}

/// Who is not root only looks, and may not see the operator's key.
fn unreadable(failure: Failure, is_root: bool) -> Result<(), Failure> {
    if is_root || failure.exit != Exit::Denied {
        return Err(failure);
    }
    note(&format!("note: only root can tell whether this is right: {}", failure.message));
    Ok(())
}

/// What was answered before, or by default, as a file.
fn print_answers(args: &Init, root: &Root, defaults: &Defaults, ui: &Ui) -> Result<(), Failure> {
    let found = Draft { address: defaults.address.map(|a| a.to_string()), ..Draft::default() };
    let draft = args.given.draft().or(saved(root)?).or(found);
    ui.text(&draft::render(&draft, TEMPLATE_HEAD))
}

fn saved(root: &Root) -> Result<Draft, Failure> {
    let text = root.read(settings::SAVED)?.unwrap_or_default();
    draft::parse(&text).map_err(|e| {
        Failure::usage(format!("{}: {e}", settings::SAVED))
            .hint("correct it, or move it away and run init again")
    })
}

fn file(path: &Path) -> Result<Draft, Failure> {
    let name = if path == Path::new("-") { "standard input".to_owned() } else { path.display().to_string() };
    let text = if path == Path::new("-") {
        let mut text = String::new();
        let read = std::io::stdin().lock().take(draft::FILE_MAX as u64 + 1).read_to_string(&mut text);
        read.map_err(|e| places::cannot("read", path, &e))?;
        text
    } else {
        let bytes = places::read(path)?.ok_or_else(|| Failure::usage(format!("there is no {name}")))?;
        String::from_utf8(bytes.to_vec()).map_err(|_| Failure::usage(format!("{name} is no text")))?
    };
    let remedy = "dstackctl init --print-answers shows every key";
    draft::parse(&text).map_err(|e| Failure::usage(format!("{name}: {e}")).hint(remedy))
}

/// Options first, then the file, or what was answered the last time; and questions where somebody is there.
fn answers(
    args: &Init,
    root: &Root,
    defaults: &Defaults,
    asker: Option<&mut dyn Asker>,
) -> Result<Answers, Failure> {
    let given = args.given.draft();
    let draft = match &args.answers {
        Some(path) => given.or(file(path)?),
        None => given.or(saved(root)?),
    };
    let draft = match asker {
        Some(asker) => ask::all(asker, draft, defaults)?,
        None => draft,
    };
    Ok(Answers::check(&draft, defaults)?)
}

/// A host, what it is to be, and what is left to do.
struct Work {
    client: Client,
    systemd: Systemd,
    root: Root,
    goal: Goal,
    secrets: Secrets,
    steps: Vec<Step>,
    /// Of root keys that are to be made: their realm, and what is to be thought of it.
    realm: Option<(String, Thought)>,
}

impl Work {
    async fn look(
        global: &Global,
        answers: &Answers,
        root: Root,
        asker: Option<&mut dyn Asker>,
        dry_run: bool,
    ) -> Result<Self, Failure> {
        let client = Client::open(global).await?;
        let systemd = Systemd::new(&client.connection).await?;
        let goal = found::goal(answers, &root, dry_run)?;
        let found = found::look(&client, &systemd, &goal, &root).await?;
        let (states, secrets) = found::secrets(answers, &root, asker)?;
        let steps = plan::plan(&goal, &Found { secrets: states, ..found });
        let makes_keys = steps.iter().any(|step| matches!(step, Step::Bootstrap(_)));
        let realm = if makes_keys { Some(realm_here(&client, answers).await?) } else { None };
        Ok(Self { client, systemd, root, goal, secrets, steps, realm })
    }

    async fn run(&self, args: &Init, global: &Global, ui: &Ui) -> Result<ExitCode, Failure> {
        let is_idle = !self.steps.iter().any(Step::is_shown);
        let mut report = Map::from_iter([("plan".to_owned(), self.plan_json()?)]);
        self.show(is_idle, ui)?;
        if args.dry_run {
            return finish(report, "dry-run", ui).map(|()| ExitCode::SUCCESS);
        }
        let agreed = match &self.realm {
            Some((label, thought)) => realm::agree(label, thought.clone(), !args.yes && !ui.json),
            None => Ok(()),
        };
        if agreed.is_ok() && !is_idle && !args.yes {
            agree()?;
        }
        let done = match agreed {
            Ok(()) => self.carry_out(ui).await,
            Err(failure) => Err(failure),
        };
        if let Err(failure) = done {
            report.insert("error".into(), failure.message.clone().into());
            report.insert("hint".into(), failure.hint.clone().into());
            finish(report, "failed", ui)?;
            return Err(failure);
        }
        self.look_over(report, if is_idle { "nothing" } else { "done" }, global, ui).await
    }

    fn plan_json(&self) -> Result<Value, Failure> {
        let shown: Vec<&Step> = self.steps.iter().filter(|s| s.is_shown()).collect();
        serde_json::to_value(shown).map_err(|e| Failure::new(format!("cannot write JSON: {e}")))
    }

    fn show(&self, is_idle: bool, ui: &Ui) -> Result<(), Failure> {
        match (ui.json, is_idle) {
            (true, _) => Ok(()),
            (false, true) => ui.text("nothing to change\n"),
            (false, false) => ui.text(&show::plan(&self.steps, self.realm.as_ref(), ui)),
        }
    }

    async fn carry_out(&self, ui: &Ui) -> Result<(), Failure> {
        let mut progress = Progress::new(ui);
        let mut host = Host {
            client: &self.client,
            systemd: &self.systemd,
            root: &self.root,
            secrets: &self.secrets,
            progress: &mut progress,
            remedy: &self.goal.remedy,
        };
        let done = hands::carry_out(&self.steps, &mut host).await;
        progress.finish();
        done
    }

    /// Doctor's checks, and the one line to fix.
    async fn look_over(
        &self,
        mut report: Map<String, Value>,
        result: &str,
        global: &Global,
        ui: &Ui,
    ) -> Result<ExitCode, Failure> {
        let (mut checks, _) = doctor::gather(global).await;
        // Before the ingress and certbot have settings, doctor has nothing to say of it.
        let is_said = checks.iter().any(|check| check.name == certificate::CHECK);
        if let Some(name) = self.goal.certificate.as_ref().filter(|_| !is_said) {
            checks.push(certificate::check(&self.client, name, &self.goal.remedy).await);
        }
        let (fix, broken) = (show::to_fix(&checks), checks.iter().any(|c| c.status == doctor::Status::Bad));
        report.insert("checks".into(), serde_json::to_value(&checks).unwrap_or_default());
        report.insert("ok".into(), (!broken).into());
        report.insert("fix".into(), fix.clone().into());
        finish(report, result, ui)?;
        if !ui.json {
            let verdict = match fix {
                None => "green: this host is set up".to_owned(),
                Some(line) => format!("to fix: {line}"),
            };
            ui.text(&format!("\n{}\n{verdict}\n", doctor::lines(&checks, ui)))?;
        }
        Ok(if broken { ExitCode::from(Exit::Failed as u8) } else { ExitCode::SUCCESS })
    }
}

/// The realm that keys of this machine will be of, and whether that is what is wanted.
async fn realm_here(client: &Client, answers: &Answers) -> Result<(String, Thought), Failure> {
    let roots =
        Roots::load(&TRUST_ROOTS).map_err(|e| Failure::new(e.to_string()).hint("see /etc/dstack/trust.d"))?;
    let label = roots.realm().to_string();
    let thought = realm::think(&label, realm::has_tdx(client).await, answers.realm);
    Ok((label, thought))
}

fn finish(mut report: Map<String, Value>, result: &str, ui: &Ui) -> Result<(), Failure> {
    if !ui.json {
        return Ok(());
    }
    report.insert("result".into(), json!(result));
    ui.json(&report)
}

fn agree() -> Result<(), Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage("nobody is there to agree to this: give --yes")
            .hint("nothing was changed; --dry-run shows the same without this error"));
    }
    match ask::yes(&mut Terminal, "Do this?", false)? {
        true => Ok(()),
        false => Err(Failure::new("nothing was changed")),
    }
}
