//! Our defaults for UCX: put into the environment before the library reads it, and only where the environment is silent.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::Path;

/// Who chose a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Source {
    /// Nothing was set, so we chose.
    OurDefault,
    /// A variable was in the environment, so we did not touch the setting.
    User,
}

/// Whether a value could still act.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Effect {
    /// It was in the environment before the library read it.
    InTime,
    /// The library was in the process already and had read its environment; the change was made by calling it.
    AtRunTime,
    /// The library was in the process already, and this cannot be changed afterwards.
    TooLate,
}

/// One setting that we care about, as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Setting {
    /// The environment variable. For a value of the user's, the one that was found, which may be an alias of ours.
    pub name: String,
    /// Its value.
    pub value: OsString,
    /// Who chose it.
    pub source: Source,
    /// Whether it could still act.
    pub effect: Effect,
    /// Why we have a default for it.
    pub why: &'static str,
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source = match self.source {
            Source::OurDefault => "our default",
            Source::User => "user",
        };
        write!(
            f,
            "{}={} ({source}",
            self.name,
            self.value.to_string_lossy()
        )?;
        match self.effect {
            Effect::InTime => {}
            Effect::AtRunTime => f.write_str(", set at run time")?,
            Effect::TooLate => f.write_str(", too late to act")?,
        }
        write!(f, "): {}", self.why)
    }
}

/// When the library reads a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Read {
    /// In the constructor of libucs or libucm, that is, while it is loaded.
    Load,
    /// As `Load`, and there is a function to change it later.
    LoadOrCall,
    /// When a context is made.
    Context,
}

/// A default of ours.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Default {
    pub(crate) name: &'static str,
    pub(crate) value: &'static str,
    /// Variables that set the same thing: if one of them is set, the user has spoken.
    pub(crate) aliases: &'static [&'static str],
    pub(crate) read: Read,
    pub(crate) why: &'static str,
}

/// The devices on which some defaults depend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Devices {
    /// An RDMA device, of any kind.
    pub(crate) rdma: bool,
    /// There are RDMA devices, and all are Soft-RoCE.
    pub(crate) only_rxe: bool,
    /// A GPU whose memory UCX can handle.
    pub(crate) gpu: bool,
}

impl Devices {
    /// Looks at this machine.
    pub(crate) fn here() -> Self {
        Self::below(Path::new("/"))
    }

    fn below(root: &Path) -> Self {
        let list = |folder: &str| {
            std::fs::read_dir(root.join(folder))
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.path())
                .collect::<Vec<_>>()
        };
        let rdma = list("sys/class/infiniband");
        // The kernel gives every rxe device, and no device of hardware, the name of the network interface under it.
        let only_rxe = !rdma.is_empty() && rdma.iter().all(|device| device.join("parent").exists());
        let nvidia = list("dev").iter().any(|path| {
            path.file_name()
                .and_then(OsStr::to_str)
                .and_then(|name| name.strip_prefix("nvidia"))
                .is_some_and(|rest| {
                    rest == "ctl"
                        || (!rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
                })
        });
        Self {
            rdma: !rdma.is_empty(),
            only_rxe,
            gpu: nvidia || root.join("dev/kfd").exists(),
        }
    }
}

const fn default(
    name: &'static str,
    value: &'static str,
    read: Read,
    why: &'static str,
) -> Default {
    Default {
        name,
        value,
        aliases: &[],
        read,
        why,
    }
}

/// Our defaults for a machine with these devices.
pub(crate) fn defaults(devices: Devices) -> Vec<Default> {
    use Read::{Context, Load, LoadOrCall};
    let mut all = vec![
        default(
            "UCX_HANDLE_ERRORS",
            "none",
            LoadOrCall,
            "UCX must not take SIGSEGV, SIGBUS, SIGFPE and SIGILL from the process",
        ),
        default(
            "UCX_DEBUG_SIGNO",
            "0",
            LoadOrCall,
            "UCX must not take SIGHUP from the process",
        ),
        default(
            "UCX_LOG_FILE",
            "stderr",
            LoadOrCall,
            "UCX logs to stdout, which belongs to the program",
        ),
        default(
            "UCX_WARN_UNUSED_ENV_VARS",
            "n",
            Load,
            "settings of transports that are not built in are no mistake",
        ),
        default(
            "UCX_KEEPALIVE_INTERVAL",
            "1s",
            Context,
            "a dead peer on shared memory is noticed only by keepalive, every 20 s",
        ),
        Default {
            aliases: &[
                "UCX_POSIX_ERROR_HANDLING",
                "UCX_SYSV_ERROR_HANDLING",
                "UCX_XPMEM_ERROR_HANDLING",
            ],
            ..default(
                "UCX_MM_ERROR_HANDLING",
                "y",
                Context,
                "without it shared memory cannot be used with peer failure handling",
            )
        },
        default(
            "UCX_TCP_TX_SEG_SIZE",
            "64k",
            Context,
            "8k segments halve the bandwidth of tcp",
        ),
        default(
            "UCX_TCP_RX_SEG_SIZE",
            "256k",
            Context,
            "as for UCX_TCP_TX_SEG_SIZE",
        ),
        Default {
            aliases: &["UCX_CM_REUSEADDR"],
            ..default(
                "UCX_TCP_CM_REUSEADDR",
                "y",
                Context,
                "a server must be able to listen again on its port",
            )
        },
        Default {
            aliases: &["UCX_CM_REUSEADDR"],
            ..default(
                "UCX_RDMA_CM_REUSEADDR",
                "y",
                Context,
                "as for UCX_TCP_CM_REUSEADDR",
            )
        },
    ];
    if !devices.rdma && !devices.gpu {
        all.push(Default {
            aliases: &[
                "UCX_MEM_MMAP_HOOK_MODE",
                "UCX_MEM_MALLOC_HOOKS",
                "UCX_MEM_MALLOC_RELOC",
            ],
            ..default(
                "UCX_MEM_EVENTS",
                "n",
                Load,
                "without an RDMA or GPU device there is no reason to patch libc's memory calls",
            )
        });
    }
    if devices.only_rxe {
        all.extend([
            Default {
                aliases: &["UCX_RC_RETRY_COUNT"],
                ..default(
                    "UCX_RC_VERBS_RETRY_COUNT",
                    "6",
                    Context,
                    "Soft-RoCE takes 7 for without end and never reports a lost peer",
                )
            },
            Default {
                aliases: &["UCX_RC_TIMEOUT"],
                ..default(
                    "UCX_RC_VERBS_TIMEOUT",
                    "200ms",
                    Context,
                    "a lost peer on Soft-RoCE is then reported in 2 s instead of 7 s",
                )
            },
            Default {
                aliases: &["UCX_UD_TIMEOUT"],
                ..default(
                    "UCX_UD_VERBS_TIMEOUT",
                    "3s",
                    Context,
                    "a lost peer is reported within 3 s instead of 30 s",
                )
            },
            Default {
                aliases: &[
                    "UCX_UD_ETH_DGID_CHECK",
                    "UCX_IB_GID_INDEX",
                    "UCX_UD_VERBS_GID_INDEX",
                    "UCX_UD_GID_INDEX",
                ],
                ..default(
                    "UCX_UD_VERBS_ETH_DGID_CHECK",
                    "n",
                    Context,
                    "Soft-RoCE does not say the address family, so UD drops all of IPv4",
                )
            },
        ]);
    }
    all
}

/// Decides every setting: what the user has set stands, for the rest `set` is called with name and value.
///
/// `late` tells that the library has read its environment already.
pub(crate) fn apply(
    defaults: &[Default],
    get: &dyn Fn(&str) -> Option<OsString>,
    set: &mut dyn FnMut(&'static str, &'static str),
    late: bool,
) -> Vec<Setting> {
    defaults
        .iter()
        .map(|default| {
            let found = std::iter::once(&default.name)
                .chain(default.aliases)
                .find_map(|name| Some((*name, get(name)?)));
            if let Some((name, value)) = found {
                return Setting {
                    name: name.into(),
                    value,
                    source: Source::User,
                    effect: Effect::InTime,
                    why: default.why,
                };
            }
            set(default.name, default.value);
            let effect = match (late, default.read) {
                (false, _) | (true, Read::Context) => Effect::InTime,
                (true, Read::Load) => Effect::TooLate,
                (true, Read::LoadOrCall) => Effect::AtRunTime,
            };
            Setting {
                name: default.name.into(),
                value: default.value.into(),
                source: Source::OurDefault,
                effect,
                why: default.why,
            }
        })
        .collect()
}
