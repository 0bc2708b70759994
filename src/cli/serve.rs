//! Runs one role in this process until a signal, a failure, or the end of standard input where that was asked for.

use crate::supervisor::Supervisor;
use anyhow::Context;
use std::future::Future;
use std::io::Read;
use std::process::ExitCode;

/// Threads for disk reads and payload files. More do not make a disk faster, and each keeps memory of its own for as long as the process lives.
const BLOCKING: usize = 12;

/// Run a role.
///
/// # Errors
/// It could not start, or something essential in it ended.
pub(super) fn role<F>(stop_on_stdin_end: bool, serve: impl FnOnce(Supervisor) -> F) -> anyhow::Result<ExitCode>
where
    F: Future<Output = anyhow::Result<()>>,
{
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING)
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(async {
        let supervisor = Supervisor::new();
        if stop_on_stdin_end {
            stop_with_stdin(&supervisor)?;
        }
        let watch = supervisor.clone().run();
        let serve = serve(supervisor.clone());
        tokio::pin!(watch, serve);
        tokio::select! {
            served = &mut serve => {
                supervisor.stop();
                let watched = watch.await;
                served.and(watched)
            }
            watched = &mut watch => watched,
        }
    });
    // Nothing is waited for: whatever was acknowledged is durable.
    runtime.shutdown_background();
    result.map(|()| ExitCode::SUCCESS)
}

fn stop_with_stdin(supervisor: &Supervisor) -> std::io::Result<()> {
    let stop = supervisor.clone();
    supervisor.thread("stdin", move || {
        let mut buffer = [0; 64];
        while matches!(std::io::stdin().read(&mut buffer), Ok(n) if n > 0) {}
        stop.stop();
    })
}
