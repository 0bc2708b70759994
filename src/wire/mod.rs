//! The wire: generated code of both contracts, and everything that is the same for every connection.
//!
//! The message types follow the package names, so `fedvision.framework.coordinator.Subscribe.REQ` is
//! [`fedvision::framework::coordinator::subscribe::Req`]. Nothing here decides; the roles do.

pub mod body;
pub mod codec;
pub mod connect;
pub mod contact;
pub mod metered;
pub mod pieces;
pub mod python_json;
pub mod serve;
pub mod task_stream;
pub mod unpacking;

/// `google.protobuf.Any`, with its value as a part of the buffer that the message came in: tasks carry hundreds of megabytes in it.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Any {
    /// What the value is, `type.googleapis.com/` and the full name of a message.
    #[prost(string, tag = "1")]
    pub type_url: String,
    /// The message, encoded.
    #[prost(bytes = "bytes", tag = "2")]
    pub value: bytes::Bytes,
}

/// Our additions to FedVision calls that are no messages: gRPC metadata, which a 0.1 peer neither sends nor reads.
pub mod metadata {
    /// With Subscribe: identity of the party's data directory, so that its new process replaces its dead one's stream.
    pub const INSTANCE: &str = "fedbroker-instance";
    /// In the answer to Subscribe: the party is enrolled. Headers alone come with a refusal as well.
    pub const ENROLLED: &str = "fedbroker-enrolled";
    /// In the answer to Proposal: why, when it is not SUCCESS.
    pub const REASON: &str = "fedbroker-reason";
    /// With an error of TaskLogs: one word for what it is, see `cluster.proto`.
    pub const LOGS: &str = "fedbroker-logs";
}

/// The FedVision 0.1 contract.
#[allow(clippy::all, missing_docs)]
pub mod fedvision {
    /// Package `fedvision.framework`.
    pub mod framework {
        tonic::include_proto!("fedvision.framework");
        /// Package `fedvision.framework.coordinator`.
        pub mod coordinator {
            tonic::include_proto!("fedvision.framework.coordinator");
        }
        /// Package `fedvision.framework.cluster`.
        pub mod cluster {
            tonic::include_proto!("fedvision.framework.cluster");
        }
    }
    /// Package `fedvision.paddle_fl`.
    pub mod paddle_fl {
        tonic::include_proto!("fedvision.paddle_fl");
    }
}

/// Our own additions, as services of their own on the same ports.
#[allow(clippy::all, missing_docs)]
pub mod fedbroker {
    /// Package `fedbroker.v1`.
    #[allow(rustdoc::invalid_html_tags, reason = "generated; the comments of the proto files are no markdown")]
    pub mod v1 {
        tonic::include_proto!("fedbroker.v1");
    }
}
