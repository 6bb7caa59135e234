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
        write!(f, "{}={} ({source}", self.name, self.value.to_string_lossy())?;
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
            path.file_name().and_then(OsStr::to_str).and_then(|name| name.strip_prefix("nvidia")).is_some_and(|rest| {
                rest == "ctl" || (!rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
            })
        });
        Self { rdma: !rdma.is_empty(), only_rxe, gpu: nvidia || root.join("dev/kfd").exists() }
    }
}

const fn default(name: &'static str, value: &'static str, read: Read, why: &'static str) -> Default {
    Default { name, value, aliases: &[], read, why }
}

fn keepalive(devices: Devices) -> Default {
    let (value, why) = if devices.rdma {
        let why = "for keepalive UCX adds a UD lane to RC, and 1.13.1 aborts the process when that lane gets no answer; \
            ucrpc looks after its peers itself";
        ("inf", why)
    } else {
        ("1s", "a dead peer on shared memory is noticed only by keepalive, every 20 s")
    };
    default("UCX_KEEPALIVE_INTERVAL", value, Read::Context, why)
}

/// What we set this variable of UCX's to on this machine where the environment is silent; `None`: it is left to UCX. For programs
/// that run UCX beside us and are to be compared. Reads a few folders of `/sys` and `/dev`, and loads nothing.
pub fn our_default(name: &str) -> Option<&'static str> {
    defaults(Devices::here()).into_iter().find(|default| default.name == name).map(|default| default.value)
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
        default("UCX_DEBUG_SIGNO", "0", LoadOrCall, "UCX must not take SIGHUP from the process"),
        default("UCX_LOG_FILE", "stderr", Load, "UCX logs to stdout, which belongs to the program"),
        default(
            "UCX_WARN_UNUSED_ENV_VARS",
            "n",
            LoadOrCall,
            "settings of transports that are not built in are no mistake",
        ),
        keepalive(devices),
        Default {
            aliases: &["UCX_POSIX_ERROR_HANDLING", "UCX_SYSV_ERROR_HANDLING", "UCX_XPMEM_ERROR_HANDLING"],
            ..default(
                "UCX_MM_ERROR_HANDLING",
                "y",
                Context,
                "without it shared memory cannot be used with peer failure handling",
            )
        },
        default("UCX_TCP_TX_SEG_SIZE", "64k", Context, "8k segments halve the bandwidth of tcp"),
        default("UCX_TCP_RX_SEG_SIZE", "256k", Context, "as for UCX_TCP_TX_SEG_SIZE"),
        default(
            "UCX_TCP_CONN_NB",
            "y",
            Context,
            "a blocking connect stops the whole thread for minutes if the network drops its packets",
        ),
        Default {
            aliases: &["UCX_CM_REUSEADDR"],
            ..default("UCX_TCP_CM_REUSEADDR", "y", Context, "a server must be able to listen again on its port")
        },
        Default {
            aliases: &["UCX_CM_REUSEADDR"],
            ..default("UCX_RDMA_CM_REUSEADDR", "y", Context, "as for UCX_TCP_CM_REUSEADDR")
        },
    ];
    if !devices.rdma && !devices.gpu {
        all.push(Default {
            aliases: &["UCX_MEM_MMAP_HOOK_MODE", "UCX_MEM_MALLOC_HOOKS", "UCX_MEM_MALLOC_RELOC"],
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
                ..default("UCX_UD_VERBS_TIMEOUT", "3s", Context, "a lost peer is reported within 3 s instead of 30 s")
            },
            Default {
                aliases: &["UCX_UD_ETH_DGID_CHECK", "UCX_IB_GID_INDEX", "UCX_UD_VERBS_GID_INDEX", "UCX_UD_GID_INDEX"],
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
            let found =
                std::iter::once(&default.name).chain(default.aliases).find_map(|name| Some((*name, get(name)?)));
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    const NOTHING: Devices = Devices { rdma: false, only_rxe: false, gpu: false };

    /// Applies the defaults to an environment made of `user`; returns the settings and what was set.
    fn run(
        devices: Devices,
        user: &[(&str, &str)],
        late: bool,
    ) -> (Vec<Setting>, BTreeMap<&'static str, &'static str>) {
        let mut set = BTreeMap::new();
        let get = |name: &str| user.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into());
        let settings =
            apply(&defaults(devices), &get, &mut |name, value| assert!(set.insert(name, value).is_none()), late);
        (settings, set)
    }

    fn find<'a>(settings: &'a [Setting], name: &str) -> &'a Setting {
        settings.iter().find(|setting| setting.name == name).unwrap_or_else(|| panic!("no {name}"))
    }

    #[test]
    fn a_silent_environment_gets_all() {
        let (settings, set) = run(NOTHING, &[], false);
        assert_eq!(settings.len(), set.len());
        for setting in &settings {
            assert_eq!((setting.source, setting.effect), (Source::OurDefault, Effect::InTime));
            assert_eq!(set.get(setting.name.as_str()).copied().map(OsString::from).as_ref(), Some(&setting.value));
        }
        assert_eq!(set["UCX_HANDLE_ERRORS"], "none");
        assert_eq!(set["UCX_MEM_EVENTS"], "n");
    }

    #[test]
    fn the_user_wins_by_name_by_alias_and_by_an_empty_value() {
        let user = [
            ("UCX_LOG_FILE", ""),
            ("UCX_POSIX_ERROR_HANDLING", "n"),
            ("UCX_CM_REUSEADDR", "n"),
            ("UCX_MEM_MMAP_HOOK_MODE", "reloc"),
        ];
        let (settings, set) = run(NOTHING, &user, false);
        for name in
            ["UCX_LOG_FILE", "UCX_MM_ERROR_HANDLING", "UCX_TCP_CM_REUSEADDR", "UCX_RDMA_CM_REUSEADDR", "UCX_MEM_EVENTS"]
        {
            assert!(!set.contains_key(name), "{name}");
        }
        for (name, value) in user {
            let setting = find(&settings, name);
            assert_eq!((setting.source, setting.value.as_os_str()), (Source::User, OsStr::new(value)));
        }
        assert_eq!(set["UCX_DEBUG_SIGNO"], "0");
    }

    #[test]
    fn devices_decide() {
        let names = |devices| run(devices, &[], false).1.into_keys().collect::<Vec<_>>();
        assert!(!names(Devices { gpu: true, ..NOTHING }).contains(&"UCX_MEM_EVENTS"));
        let hardware = names(Devices { rdma: true, ..NOTHING });
        assert!(!hardware.iter().any(|name| *name == "UCX_MEM_EVENTS" || name.contains("VERBS")), "{hardware:?}");
        for (rdma, keepalive) in [(false, "1s"), (true, "inf")] {
            assert_eq!(run(Devices { rdma, ..NOTHING }, &[], false).1["UCX_KEEPALIVE_INTERVAL"], keepalive);
        }
        let soft = names(Devices { rdma: true, only_rxe: true, gpu: false });
        assert!(soft.contains(&"UCX_RC_VERBS_RETRY_COUNT") && soft.contains(&"UCX_UD_VERBS_ETH_DGID_CHECK"));
    }

    #[test]
    fn a_default_can_be_asked_for() {
        assert_eq!(our_default("UCX_TCP_TX_SEG_SIZE"), Some("64k"));
        assert_eq!(our_default("UCX_TLS"), None);
    }

    #[test]
    fn a_late_setting_says_so() {
        let (settings, _) = run(NOTHING, &[("UCX_DEBUG_SIGNO", "1")], true);
        assert_eq!(find(&settings, "UCX_HANDLE_ERRORS").effect, Effect::AtRunTime);
        assert_eq!(find(&settings, "UCX_MEM_EVENTS").effect, Effect::TooLate);
        assert_eq!(find(&settings, "UCX_KEEPALIVE_INTERVAL").effect, Effect::InTime);
        let signal = find(&settings, "UCX_DEBUG_SIGNO");
        assert_eq!((signal.source, signal.effect), (Source::User, Effect::InTime));
        assert!(find(&settings, "UCX_MEM_EVENTS").to_string().contains("too late"));
    }

    #[test]
    fn devices_are_found_by_their_files() {
        let root = std::env::temp_dir().join(format!("ucx-sys-devices-{}", std::process::id()));
        let touch = |path: &str| {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().expect("below the root")).expect("temporary folder");
            std::fs::write(path, "").expect("temporary folder");
        };
        assert_eq!(Devices::below(&root), NOTHING);
        touch("dev/nvidia-caps/nvidia-cap1");
        touch("dev/nvidia-modeset");
        assert_eq!(Devices::below(&root), NOTHING);
        touch("sys/class/infiniband/rxe0/parent");
        assert_eq!(Devices::below(&root), Devices { rdma: true, only_rxe: true, gpu: false });
        touch("sys/class/infiniband/mlx5_0/fw_ver");
        assert_eq!(Devices::below(&root), Devices { rdma: true, only_rxe: false, gpu: false });
        touch("dev/nvidia0");
        assert_eq!(Devices::below(&root), Devices { rdma: true, only_rxe: false, gpu: true });
        std::fs::remove_dir_all(&root).expect("temporary folder");
    }
}
