//! The lab's command line: creates a lab, runs the server alone, runs a client, or cleans up.

use std::{
    fs::File,
    io::{self, Read, Write},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context as _, Result, anyhow};
use clap::{Args, Parser, Subcommand};
use imds_observer_lab::{
    client::{self, Script},
    server::{Behaviour, Server, ServerOptions, Tokens},
    topology::{self, Lab, LabOptions, Place, PodOptions},
};
use nix::sys::signal::{SigSet, Signal};

/// A stand-in metadata service and the network around it, in namespaces without a route to the outside.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Create a lab, print how to enter it, and keep it until interrupted
    Up(Up),
    /// Run the metadata server alone, in the current network namespace
    Server {
        /// Address to listen on
        #[arg(long, required = true)]
        listen: Vec<SocketAddr>,
        /// Path of the control socket to create
        #[arg(long)]
        control: Option<PathBuf>,
        #[command(flatten)]
        behaviour: BehaviourArgs,
    },
    /// Run a script; prints one JSON line per step
    Client {
        /// The script, or - for standard input
        #[arg(required_unless_present_any = ["preset", "list"])]
        script: Option<PathBuf>,
        /// One of the built-in scripts instead
        #[arg(long, conflicts_with = "script")]
        preset: Option<String>,
        /// List the built-in scripts
        #[arg(long)]
        list: bool,
        /// Connect to this address instead of the script's
        #[arg(long)]
        target: Option<SocketAddr>,
        /// Number of rounds, instead of the script's
        #[arg(long)]
        rounds: Option<u32>,
    },
    /// Remove the remains of labs whose owner has died
    Clean,
}

#[derive(Args)]
struct Up {
    #[arg(long, default_value_t = 1)]
    pods: usize,
    /// Don't wait for other labs of this machine
    #[arg(long)]
    shared: bool,
    #[command(flatten)]
    behaviour: BehaviourArgs,
}

#[derive(Args)]
struct BehaviourArgs {
    /// Hop limit of token responses
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..))]
    hop_limit: u8,
    /// Refuse requests without a token
    #[arg(long)]
    tokens_required: bool,
    /// Keep connections open
    #[arg(long)]
    keep_alive: bool,
}

impl BehaviourArgs {
    fn behaviour(&self) -> Behaviour {
        Behaviour {
            hop_limit: self.hop_limit,
            tokens: if self.tokens_required {
                Tokens::Required
            } else {
                Tokens::Optional
            },
            keep_alive: self.keep_alive,
            ..Behaviour::default()
        }
    }
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Verb::Up(options) => up(&options),
        Verb::Server {
            listen,
            control,
            behaviour,
        } => serve(listen, control, &behaviour),
        Verb::Client { list: true, .. } => list_presets(),
        Verb::Client {
            script,
            preset,
            target,
            rounds,
            ..
        } => run_client(script, preset, target, rounds),
        Verb::Clean => clean(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("imds-observer-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn up(options: &Up) -> Result<()> {
    // Before any thread exists, so that all threads inherit the mask and only `up` receives the signal.
    let interrupts = hold_interrupts()?;
    raise_descriptor_limit();
    let lab = Lab::new(LabOptions {
        behaviour: options.behaviour.behaviour(),
        pods: vec![PodOptions::default(); options.pods],
        exclusive: !options.shared,
        ..LabOptions::default()
    })?;
    let mut out = io::stdout().lock();
    writeln!(out, "lab {} is up", lab.id())?;
    let mut describe = |name: &str, place: &Place| {
        writeln!(out, "{name}: {}, cgroup {}", place.ipv4(), place.cgroup().path())?;
        let (netns, cgroup) = (place.netns().path().display(), place.cgroup().directory().display());
        writeln!(
            out,
            "  sh -c 'echo $$ > {cgroup}/cgroup.procs; exec nsenter --net={netns} bash'"
        )
    };
    describe("imds", lab.imds())?;
    describe("node", lab.node())?;
    for (number, place) in lab.pods() {
        describe(&format!("pod {number}"), place)?;
    }
    let endpoints: Vec<String> = lab.endpoints().iter().map(ToString::to_string).collect();
    writeln!(out, "endpoints: {}", endpoints.join(" "))?;
    writeln!(out, "control socket: {}", lab.control_socket().display())?;
    writeln!(out, "ready; interrupt to end")?;
    out.flush()?;
    interrupts.wait()?;
    drop(lab);
    Ok(())
}

fn serve(listen: Vec<SocketAddr>, control: Option<PathBuf>, behaviour: &BehaviourArgs) -> Result<()> {
    let interrupts = hold_interrupts()?;
    raise_descriptor_limit();
    let options = ServerOptions {
        control,
        behaviour: behaviour.behaviour(),
        ..ServerOptions::new(listen)
    };
    let server = Server::start(options)?;
    let addresses: Vec<String> = server.addresses().iter().map(ToString::to_string).collect();
    println!("listening on {}", addresses.join(" "));
    interrupts.wait()?;
    Ok(())
}

fn run_client(
    path: Option<PathBuf>,
    preset: Option<String>,
    target: Option<SocketAddr>,
    rounds: Option<u32>,
) -> Result<()> {
    let mut script = match (path, preset) {
        (_, Some(name)) => client::presets()
            .into_iter()
            .find_map(|(known, script)| (known == name).then_some(script))
            .ok_or_else(|| anyhow!("there is no preset {name}: `client --list` names them"))?,
        (Some(path), None) => read_script(&path).with_context(|| format!("read script {}", path.display()))?,
        (None, None) => return Err(anyhow!("name a script or a preset")),
    };
    script.target = target.unwrap_or(script.target);
    script.rounds = rounds.unwrap_or(script.rounds);
    if let Some(comm) = &script.comm {
        nix::sys::prctl::set_name(&std::ffi::CString::new(comm.as_str())?)?;
    }
    let mut out = io::stdout().lock();
    let mut broken = None;
    client::run(&script, |outcome| {
        let written = serde_json::to_writer(&mut out, &outcome)
            .map_err(io::Error::from)
            .and_then(|()| out.write_all(b"\n"));
        broken = broken.take().or(written.err());
    });
    match broken {
        Some(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

fn read_script(path: &std::path::Path) -> Result<Script> {
    let mut text = String::new();
    if path.as_os_str() == "-" {
        io::stdin().read_to_string(&mut text)?;
    } else {
        File::open(path)?.read_to_string(&mut text)?;
    }
    Ok(serde_json::from_str(&text)?)
}

fn list_presets() -> Result<()> {
    for (name, _) in client::presets() {
        writeln!(io::stdout(), "{name}")?;
    }
    Ok(())
}

fn clean() -> Result<()> {
    for id in topology::clean()? {
        println!("removed lab {id}");
    }
    Ok(())
}

fn hold_interrupts() -> Result<SigSet> {
    let interrupts = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    interrupts.thread_block()?;
    Ok(interrupts)
}

/// Raises the limit on open descriptors, because a flood needs one per connection. A failure is ignored: the flood then only ends sooner.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
