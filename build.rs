//! Compiles the protobuf contracts with protox, so that no `protoc` is needed on the machine.

const PROTOS: [&str; 8] = [
    "fedvision/framework/protobuf/job.proto",
    "fedvision/framework/protobuf/coordinator.proto",
    "fedvision/framework/protobuf/cluster.proto",
    "fedvision/paddle_fl/protobuf/scheduler.proto",
    "fedvision/paddle_fl/protobuf/fl_job.proto",
    "fedbroker/v1/peer.proto",
    "fedbroker/v1/cluster.proto",
    "fedbroker/v1/task.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        // Large payloads are parts of the one buffer they came in, and never copied.
        .extern_path(".google.protobuf.Any", "crate::wire::Any")
        .bytes(".fedvision.paddle_fl")
        .compile_fds(descriptors)?;
    Ok(())
}
