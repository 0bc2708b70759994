//! Compiles the protobuf contracts with protox, so that no `protoc` is needed on the machine.

use protox::prost_reflect::prost_types::FileDescriptorSet;
use std::path::PathBuf;

const PROTOS: [&str; 9] = [
    "fedvision/framework/protobuf/job.proto",
    "fedvision/framework/protobuf/coordinator.proto",
    "fedvision/framework/protobuf/cluster.proto",
    "fedvision/paddle_fl/protobuf/scheduler.proto",
    "fedvision/paddle_fl/protobuf/fl_job.proto",
    "fedbroker/v1/peer.proto",
    "fedbroker/v1/cluster.proto",
    "fedbroker/v1/federation.proto",
    "fedbroker/v1/task.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    methods(&descriptors)?;
    println!("cargo:rustc-env=FEDBROKER_RUSTC={}", rustc()?);
    println!("cargo:rerun-if-env-changed=FEDBROKER_REVISION");
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        .codec_path("crate::wire::codec::Codec")
        // Large payloads are parts of the one buffer they came in, and never copied.
        .extern_path(".google.protobuf.Any", "crate::wire::Any")
        .bytes(".fedvision.paddle_fl")
        .bytes(".fedbroker.v1.DummyTask")
        .bytes(".fedbroker.v1.TaskPiece")
        .compile_fds(descriptors)?;
    Ok(())
}

/// The names of all calls, for the metrics: a path that is none of them must not become a label.
fn methods(descriptors: &FileDescriptorSet) -> Result<(), Box<dyn std::error::Error>> {
    let mut names = Vec::new();
    for file in &descriptors.file {
        for service in &file.service {
            let full = |method: &str| format!("{}.{}/{method}", file.package(), service.name());
            names.extend(service.method.iter().map(|method| full(method.name())));
        }
    }
    names.sort();
    let path = PathBuf::from(std::env::var("OUT_DIR")?).join("methods.rs");
    Ok(std::fs::write(path, format!("&{names:?}"))?)
}

/// The compiler's number, e.g. `1.95.0`.
fn rustc() -> Result<String, Box<dyn std::error::Error>> {
    let said = std::process::Command::new(std::env::var("RUSTC")?).arg("--version").output()?;
    let said = String::from_utf8(said.stdout)?;
    Ok(said.split_whitespace().nth(1).unwrap_or("unknown").to_owned())
}
