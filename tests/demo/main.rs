//! The whole system on this machine, playing the story of a Service with the real kubectl.
//!
//! `KEEP=1` leaves it running at the end, `PROVIDER=aws` plays the AWS half against moto. Ctrl-C
//! at any point removes everything.
#![allow(clippy::print_stdout, reason = "what is printed is the demo")]

mod aws_story;
mod cluster_story;
mod metal_story;
mod show;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use lab::{Lab, Provider};
use tokio::signal::unix::{SignalKind, signal};

use show::Show;

#[tokio::main]
async fn main() -> ExitCode {
    let mut show = Show::new();
    let verdict = tokio::select! {
        verdict = play(&mut show) => verdict,
        () = asked_to_stop() => {
            println!("\nstopping: removing everything from this machine");
            return ExitCode::from(130);
        }
    };
    if let Err(error) = verdict {
        show.broke_off(&error);
    }
    show.summary()
}

/// The lab ends with this function, also when the function is dropped half-way.
async fn play(show: &mut Show) -> Result<()> {
    let provider = match std::env::var("PROVIDER").as_deref() {
        Err(_) | Ok("" | "metal") => Provider::Metal,
        Ok("aws") => Provider::Aws,
        Ok(other) => bail!("PROVIDER={other}: give metal or aws"),
    };
    show.chapter("Starting a cluster on this machine");
    let start = Instant::now();
    let lab = Lab::builder("demo").provider(provider).progress(show::progress).start().await?;
    show::progress(&format!("everything is ready after {:.1} s", start.elapsed().as_secs_f32()));
    match provider {
        Provider::Aws => aws_story::tell(show, &lab).await?,
        Provider::Metal | Provider::None => metal_story::tell(show, &lab).await?,
    }
    if std::env::var("KEEP").is_ok_and(|keep| !matches!(keep.as_str(), "" | "0")) {
        return keep(show, &lab).await;
    }
    match provider {
        Provider::Aws => aws_story::nothing_remains(show, &lab).await,
        Provider::Metal | Provider::None => metal_story::nothing_remains(show, &lab).await,
    }
}

async fn keep(show: &mut Show, lab: &Lab) -> Result<()> {
    let kubectl = &lab.control_plane.kubectl;
    let folder = kubectl.program().parent().context("a program lies in a folder")?;
    show.summary();
    println!(
        "\nIt keeps running. In another terminal:\n\n    \
         export KUBECONFIG={} PATH={}:$PATH\n    \
         kubectl get svc,pods -o wide\n    \
         ip netns exec {} bash       # be the client outside; `ip netns` lists nodes, balancers and pods\n    \
         tail -f {}/*.log\n\n\
         Ctrl-C here ends it and removes everything.",
        kubectl.kubeconfig().display(),
        folder.display(),
        lab.client_host.netns.name(),
        lab.logs().display(),
    );
    asked_to_stop().await;
    println!("\nstopping: removing everything from this machine");
    Ok(())
}

async fn asked_to_stop() {
    let mut terminate = signal(SignalKind::terminate()).expect("a process may listen for SIGTERM");
    let mut hang_up = signal(SignalKind::hangup()).expect("a process may listen for SIGHUP");
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
        _ = hang_up.recv() => {}
    }
}
