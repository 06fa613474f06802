//! What containerd and `start` tell each other: parameters on standard input, the socket's address on standard output.
//!
//! containerd 2.3 and later write a `BootstrapParams` message and read a `BootstrapResult`. 2.0 to 2.2 pass flags and
//! environment, write the runtime options alone (or nothing), and read JSON. An options message decodes as
//! `BootstrapParams` too (its type in the place of the id), which is why the id decides.

use containerd_shim_protos::TASK_API_VERSION;
use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use containerd_shim_protos::protobuf::Message as _;
use containerd_shim_protos::protobuf::well_known_types::any::Any;

use crate::args::Args;
use crate::error::{Error, Result};

/// The directory of shim sockets where containerd names none.
const SOCKETS: &str = "/run/containerd/s";

/// Parameters of `start`, from either protocol.
#[derive(Debug, PartialEq)]
pub(crate) struct Params {
    pub(crate) protocol: Protocol,
    pub(crate) debug: bool,
    /// containerd's gRPC socket; the shim's own name is derived from it.
    pub(crate) address: String,
    /// containerd's ttrpc socket, for events.
    pub(crate) ttrpc_address: String,
    pub(crate) sockets: String,
    pub(crate) extensions: Vec<Any>,
}

/// How the reply is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Bootstrap,
    Json,
}

/// What older containerds pass by environment.
#[derive(Debug, Default)]
pub(crate) struct Environment {
    pub(crate) ttrpc_address: String,
    pub(crate) grpc_address: String,
}

impl Params {
    /// Parses what containerd wrote.
    ///
    /// # Errors
    /// The message is for another container, or no ttrpc address is given.
    pub(crate) fn parse(input: &[u8], args: &Args, environment: Environment) -> Result<Self> {
        let params = match BootstrapParams::parse_from_bytes(input) {
            Ok(params) if params.instance_id == args.id => {
                if params.namespace != args.namespace {
                    let reason = format!("the command line says {:?}", args.namespace);
                    let value = params.namespace;
                    return Err(Error::Invalid { what: "bootstrap namespace", value, reason });
                }
                let extensions = params.extensions.into_iter();
                Self {
                    protocol: Protocol::Bootstrap,
                    debug: args.debug,
                    address: params.containerd_grpc_address,
                    ttrpc_address: params.containerd_ttrpc_address,
                    sockets: params.socket_dir.unwrap_or_default(),
                    extensions: extensions.filter_map(|each| each.value.into_option()).collect(),
                }
            }
            _ => Self::from_command_line(input, args, environment),
        };
        if params.ttrpc_address.is_empty() {
            let reason = "neither in the bootstrap message nor in TTRPC_ADDRESS".to_owned();
            return Err(Error::Invalid { what: "ttrpc address", value: String::new(), reason });
        }
        match params.sockets.as_str() {
            "" => Ok(Self { sockets: SOCKETS.to_owned(), ..params }),
            _ => Ok(params),
        }
    }

    fn from_command_line(input: &[u8], args: &Args, environment: Environment) -> Self {
        let options = Any::parse_from_bytes(input).ok().filter(|any| !any.type_url.is_empty());
        let address = match args.address.as_str() {
            "" => environment.grpc_address,
            address => address.to_owned(),
        };
        Self {
            protocol: Protocol::Json,
            debug: args.debug,
            address,
            ttrpc_address: environment.ttrpc_address,
            sockets: String::new(),
            extensions: options.into_iter().collect(),
        }
    }
}

/// The reply: the shim serves the task API, version 3, by ttrpc on `socket`.
///
/// # Errors
/// The message cannot be encoded.
pub(crate) fn reply(protocol: Protocol, socket: &std::path::Path) -> Result<Vec<u8>> {
    let address = format!("unix://{}", socket.display());
    match protocol {
        Protocol::Bootstrap => {
            let result = BootstrapResult {
                version: TASK_API_VERSION,
                address,
                protocol: "ttrpc".to_owned(),
                ..BootstrapResult::default()
            };
            result.write_to_bytes().map_err(Error::decode("encode bootstrap result"))
        }
        Protocol::Json => {
            let result = serde_json::json!({
                "version": TASK_API_VERSION, "address": address, "protocol": "ttrpc",
            });
            Ok(result.to_string().into_bytes())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_shim_protos::bootstrap_api::Extension;
    use containerd_shim_protos::shim::oci::Options;

    fn args() -> Args {
        Args {
            namespace: "n".into(),
            id: "a1".into(),
            address: "/run/c.sock".into(),
            ..Args::default()
        }
    }

    fn options() -> Any {
        crate::events::pack(
            "containerd.runc.v1",
            &Options { shim_cgroup: "/s".into(), ..Options::default() },
        )
        .unwrap()
    }

    fn message() -> BootstrapParams {
        BootstrapParams {
            instance_id: "a1".into(),
            namespace: "n".into(),
            containerd_ttrpc_address: "/run/c.sock.ttrpc".into(),
            containerd_grpc_address: "/run/c.sock".into(),
            extensions: vec![Extension { value: Some(options()).into(), ..Extension::default() }],
            socket_dir: Some("/run/private/s".into()),
            ..BootstrapParams::default()
        }
    }

    #[test]
    fn both_protocols() {
        let input = message().write_to_bytes().unwrap();
        let params = Params::parse(&input, &args(), Environment::default()).unwrap();
        assert_eq!(
            (params.protocol, params.sockets.as_str()),
            (Protocol::Bootstrap, "/run/private/s")
        );
        assert_eq!(
            (&*params.address, &*params.ttrpc_address),
            ("/run/c.sock", "/run/c.sock.ttrpc")
        );
        assert_eq!(params.extensions, [options()]);

        let environment =
            || Environment { ttrpc_address: "/t".into(), grpc_address: "/unused".into() };
        let input = options().write_to_bytes().unwrap();
        let params = Params::parse(&input, &args(), environment()).unwrap();
        assert_eq!((params.protocol, params.sockets.as_str()), (Protocol::Json, SOCKETS));
        assert_eq!((&*params.address, &*params.ttrpc_address), ("/run/c.sock", "/t"));
        assert_eq!(params.extensions, [options()]);
        assert!(Params::parse(&[], &args(), environment()).unwrap().extensions.is_empty());
    }

    #[test]
    fn no_address_and_foreign_messages_are_errors() {
        assert!(Params::parse(&[], &args(), Environment::default()).is_err());
        let foreign = BootstrapParams { namespace: "other".into(), ..message() };
        let input = foreign.write_to_bytes().unwrap();
        assert!(Params::parse(&input, &args(), Environment::default()).is_err());
    }

    #[test]
    fn replies() {
        let socket = std::path::Path::new("/run/containerd/s/ab");
        let bytes = reply(Protocol::Bootstrap, socket).unwrap();
        let result = BootstrapResult::parse_from_bytes(&bytes).unwrap();
        assert_eq!((result.version, result.address.as_str()), (3, "unix:///run/containerd/s/ab"));
        let json: serde_json::Value =
            serde_json::from_slice(&reply(Protocol::Json, socket).unwrap()).unwrap();
        assert_eq!(json["address"], "unix:///run/containerd/s/ab");
        assert_eq!((&json["version"], &json["protocol"]), (&3.into(), &"ttrpc".into()));
    }
}
