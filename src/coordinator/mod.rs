//! The coordinator role: a durable machine behind the FedVision 0.1 gRPC service.
//!
//! Started by `cli`, or in-process by tests. `service` (FedVision 0.1's, behind `intake`) and `federation` (our own) turn calls into commands, `hub` executes effects, the rules are in
//! `machine::coordinator`. Nothing here outlives the process but what the engine has recorded.

mod convert;
mod federation;
mod follow;
mod hub;
mod intake;
mod service;

use crate::config::CoordinatorOptions;
use crate::engine::clock::{Clock, SystemClock};
use crate::engine::open::{Opened, open};
use crate::engine::retention::{self, Keep, Kind};
use crate::machine::coordinator::{Command, Coordinator, Key, Record, Rules, State, all_proposals, shares};
use crate::machine::ids::JobId;
use crate::observe;
use crate::store::Error;
use crate::supervisor::{Policy, Supervisor};
use crate::telemetry::say;
use crate::wire::body::Answering;
use crate::wire::connect::MESSAGE_MAX;
use crate::wire::fedbroker::v1::federation_server::FederationServer;
use crate::wire::fedbroker::v1::peer_server::PeerServer;
use crate::wire::fedvision::framework::coordinator::coordinator_server::CoordinatorServer;
use crate::wire::serve::{self, PeerService};
use anyhow::Context;
use federation::{Federation, assignments};
use hub::{Executor, Hub};
use intake::Intake;
use service::Service;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// The role's word in its data directory and in Hello.
const ROLE: &str = "coordinator";
/// How long connections have to end once the role stops; a client that does not read must not hold it up.
const DRAIN: Duration = Duration::from_secs(1);

/// What is let go in the end: verdicts of proposals that have expired.
fn ended_proposals() -> Kind<Coordinator> {
    Kind {
        prefix: all_proposals(),
        ended_at: |record| match record {
            Record::Proposal(proposal) => match &proposal.state {
                State::Expired { at, .. } => Some(*at),
                State::Open | State::Closed { .. } => None,
            },
            _ => None,
        },
        forget: |reader, keys| {
            let with_parties = |job: JobId| {
                let assignments = assignments(reader, &job)?;
                Ok((job, assignments.into_iter().map(|(party, _)| party).collect()))
            };
            let jobs = keys.into_iter().filter_map(job_of).map(with_parties);
            let shares = shares(jobs.collect::<Result<_, Error>>()?).into_iter();
            Ok(shares.map(|jobs| Command::Forget { jobs }).collect())
        },
    }
}

fn job_of(key: Key) -> Option<JobId> {
    match key {
        Key::Proposal(job) => Some(job),
        _ => None,
    }
}

/// A coordinator that has its port and nothing else.
pub struct Bound {
    options: CoordinatorOptions,
    listener: TcpListener,
    address: SocketAddr,
}

/// Take the port.
///
/// # Errors
/// The address cannot be bound.
pub async fn bind(options: CoordinatorOptions) -> anyhow::Result<Bound> {
    let (listener, address) = serve::bind(&options.host, options.port).await?;
    Ok(Bound {
        options,
        listener,
        address,
    })
}

/// Run a coordinator until the supervisor stops.
///
/// # Errors
/// The port, the data directory or the store cannot be had.
pub async fn serve(options: CoordinatorOptions, supervisor: Supervisor) -> anyhow::Result<()> {
    bind(options).await?.serve(supervisor).await
}

impl Bound {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Run until the supervisor stops.
    ///
    /// # Errors
    /// The data directory or the store cannot be had.
    pub async fn serve(self, supervisor: Supervisor) -> anyhow::Result<()> {
        let Bound {
            options,
            listener,
            address,
        } = self;
        let metrics = supervisor.metrics().clone();
        metrics.begin(ROLE, SystemClock.now().0);
        observe::start(ROLE, &options.host, options.metrics_port, &supervisor).await?;
        let rules = Rules {
            party_lease_ms: options.party_lease.saturating_mul(1000),
            keep_closed_ms: options.keep_closed.saturating_mul(1000),
            settle_ms: options.settle.saturating_mul(1000),
        };
        let machine = Coordinator::new(rules);
        let data_dir = options.data_dir.clone();
        let open = move || open(&data_dir, ROLE, None, machine, MESSAGE_MAX as u64, &metrics);
        let opened = Supervisor::blocking(open).await??;
        let Opened {
            engine,
            payloads,
            instance,
            ..
        } = opened;

        let (handle, hub) = (engine.handle(), Hub::new(engine.report.epoch));
        let (sink, effects) = mpsc::unbounded_channel();
        let (executor, clock) = (handle.clone(), Arc::new(SystemClock));
        let executor = Executor {
            hub: hub.clone(),
            handle: executor,
            supervisor: supervisor.clone(),
            clock,
        };
        supervisor.spawn("effects", Policy::Essential, executor.run(effects));
        // The executor ends before the loop only when the role stops.
        engine
            .start(&supervisor, Box::new(move |effect| drop(sink.send(effect))))
            .context("cannot start the engine")?;
        handle.send(Command::Started).await.context("cannot record the start")?;

        let keep = Keep::new(options.keep_ended_days, options.keep_ended);
        let keeping = retention::run(handle.clone(), Arc::new(SystemClock), keep, ended_proposals());
        supervisor.spawn("retention", Policy::Ordinary, keeping);

        let federation = FederationServer::new(Federation {
            handle: handle.clone(),
            hub: hub.clone(),
            supervisor: supervisor.clone(),
        });
        let service = Service {
            handle,
            hub: hub.clone(),
            payloads: payloads.clone(),
            supervisor: supervisor.clone(),
        };
        let coordinator = CoordinatorServer::new(service)
            .max_decoding_message_size(MESSAGE_MAX)
            .max_encoding_message_size(MESSAGE_MAX);
        let inner = Answering(coordinator);
        let coordinator = Intake { inner, payloads };
        let peer = PeerServer::new(PeerService { role: ROLE, instance });
        let incoming = serve::incoming(listener);
        let router = serve::metered_server(supervisor.metrics())
            .add_service(coordinator)
            .add_service(federation)
            .add_service(peer);
        let serving = router.serve_with_incoming_shutdown(incoming, supervisor.stopped());
        tokio::pin!(serving);
        say(&format!("coordinator ready on {address}"));
        tokio::select! {
            ended = &mut serving => return ended.context("the gRPC server failed"),
            () = supervisor.stopped() => {}
        }
        hub.stop();
        let _ = tokio::time::timeout(DRAIN, serving).await;
        Ok(())
    }
}
