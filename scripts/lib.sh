# Shared by the scripts of this project (source it): messages, packages, /dev/kvm, stages.
# shellcheck shell=bash disable=SC2034  # what is set here is used there

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/crossbar
cores=$(nproc)
assume_yes=${CROSSBAR_YES:-}

say() { printf '%s\n' "$*"; }
warn() { printf '%s\n' "$*" >&2; }
die() {
  warn "${0##*/}: $*"
  exit 1
}

can_be_root() { [ "$(id -u)" = 0 ] || command -v sudo >/dev/null; }
as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  else
    sudo "$@"
  fi
}

# ---- packages (Debian 12 and later) ----------------------------------------------------------------

build_packages=(g++ cmake ninja-build make ccache pkg-config python3 libfmt-dev libfdt-dev
  libboost-program-options-dev nlohmann-json3-dev libgtest-dev libgmock-dev acpica-tools
  device-tree-compiler)
test_packages=(clang-19 clang-tidy-19 libclang-rt-19-dev libbenchmark-dev git)
full_packages=(gcovr)
# What the lab unpacks and builds kernels with (lab/kernels.py, lab/build.py). It brings its own QEMU.
lab_packages=(zstd binutils)
lab_build_packages=(gcc make flex bison bc libelf-dev libssl-dev lz4 xz-utils)

is_installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

# The version of a package that is installed / that apt would install; empty where there is none.
installed_version() { dpkg-query -W -f '${Version}' "$1" 2>/dev/null || true; }
candidate_version() {
  LC_ALL=C apt-cache policy "$1" 2>/dev/null |
    awk '$1 == "Candidate:" && $2 != "(none)" { print $2 }'
}

# QEMU before 8 has faults that its guests do not survive.
qemu_is_good() { [ -n "$1" ] && dpkg --compare-versions "$1" ge 1:8; }

# need_packages NAME...: installs what is missing, after saying what and, at a terminal, asking.
# The name qemu stands for qemu-system-x86, version 8 or later.
need_packages() {
  if ! command -v apt-get >/dev/null; then
    warn "No apt-get here, so nothing is installed. Needed, by their Debian names: $*"
    return
  fi
  local missing=() qemu='' name
  for name in "$@"; do
    if [ "$name" = qemu ]; then
      qemu_is_good "$(installed_version qemu-system-x86)" || qemu="qemu-system-x86"
    elif ! is_installed "$name"; then
      missing+=("$name")
    fi
  done
  if [ "${#missing[@]}" = 0 ] && [ -z "$qemu" ]; then
    return
  fi
  local all=("${missing[@]}" ${qemu:+"$qemu"})
  say "These Debian packages are missing: ${all[*]}"
  [ -z "${CROSSBAR_NO_INSTALL:-}" ] || die 'CROSSBAR_NO_INSTALL is set, so they are not installed'
  can_be_root || die "installing needs root, and there is no sudo. As root: apt-get install ${all[*]}"
  confirm 'Install them with apt-get now?' || die "not installed. By hand: apt-get install ${all[*]}"
  if [ "${#missing[@]}" != 0 ]; then
    apt_install "${missing[@]}"
  fi
  if [ -n "$qemu" ]; then
    install_qemu
  fi
}

# Asks where a person is at the terminal; everywhere else, and with --yes, the answer is yes.
confirm() {
  [ -n "$assume_yes" ] || ! [ -t 0 ] && return 0
  local answer
  read -r -p "$1 [Y/n] " answer || return 1  # Ctrl-D is no yes
  [[ $answer =~ ^([Yy].*)?$ ]]
}

apt_get() { as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=600 "$@"; }

# apt_install NAME...: from the suites this machine has; the lists are fetched anew where they are missing or too old
# to be of use. Where that fails backports may help: of a library that is here from there (QEMU's libelf1, on Debian 12)
# the headers have to be, too.
apt_install() {
  say "Installing $*"
  local log
  log=$(mktemp)
  if ! apt_get install -y --no-install-recommends "$@" >"$log" 2>&1 &&
    ! { apt_get update && apt_get install -y --no-install-recommends "$@"; } >"$log" 2>&1; then
    cat "$log" >&2
    install_from_backports "$@"
  fi
  rm -f "$log"
}

install_qemu() {
  [ -n "$(candidate_version qemu-system-x86)" ] || apt_get update >/dev/null || die 'apt-get update failed'
  if qemu_is_good "$(candidate_version qemu-system-x86)"; then
    apt_install qemu-system-x86
  else
    install_from_backports qemu-system-x86
  fi
}

# install_from_backports NAME...: from this release's backports suite, on the mirror that apt uses
# already. That suite is known only to a private apt configuration in our cache folder; the apt
# sources of this machine stay as they are.
install_from_backports() {
  local release apt="$cache/apt" log
  release=$(. /etc/os-release && echo "$VERSION_CODENAME")
  say "Installing $* from $release-backports (by a private apt configuration in $apt)"
  mkdir -p "$apt/sources" "$apt/lists/partial"
  debian_sources "$release" >"$apt/sources/crossbar.list"
  local options=(-o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$apt/sources"
    -o "Dir::State::lists=$apt/lists" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=
    -o APT::Sandbox::User=root)
  log=$(mktemp)
  { apt_get "${options[@]}" update &&
    apt_get "${options[@]}" install -y --no-install-recommends -t "$release-backports" "$@"; } \
    >"$log" 2>&1 || { cat "$log" >&2; rm -f "$log"; die "apt-get could not install: $*"; }
  rm -f "$log"
}

# The Debian sources that apt uses now, as one-line entries, and the backports of release $1 on the
# same mirror with the same key.
debian_sources() {
  local release=$1 key=/usr/share/keyrings/debian-archive-keyring.gpg signed=''
  [ -r "$key" ] && signed="[signed-by=$key] "
  local format="\$(REPO_URI) \$(RELEASE) \$(COMPONENT)" entries main
  entries=$(apt-get indextargets --format "$format" 'Created-By: Packages' 'Origin: Debian' | sort -u)
  main=$(awk -v release="$release" '$2 == release && $3 == "main" { print $1; exit }' <<<"$entries")
  [ -n "$main" ] || die "apt knows no mirror for Debian $release"
  printf '%s\n%s %s main\n' "$entries" "$main" "$release-backports" | sort -u |
    sed "s|^|deb $signed|"
}

# ---- /dev/kvm --------------------------------------------------------------------------------------

# Prints why /dev/kvm cannot be used and what to do about it; nothing where it can.
kvm_trouble() {
  if ! [ -e /dev/kvm ]; then
    say "There is no /dev/kvm. On a PC, turn on virtualisation (SVM or VT-x) in the firmware set-up" \
      "and load its module (modprobe kvm_amd or kvm_intel); in a virtual machine, the host has to" \
      "allow nested virtualisation; in a container, pass the device in (--device /dev/kvm)."
  elif ! [ -r /dev/kvm ] || ! [ -w /dev/kvm ]; then
    local group
    group=$(stat -c %G /dev/kvm)
    if [ "$group" = root ] || [ "$group" = UNKNOWN ]; then
      say "$(id -un) may not open /dev/kvm, which no ordinary group owns. Run this as root, or give" \
        "yourself access: sudo setfacl -m u:$(id -un):rw /dev/kvm"
    else
      say "$(id -un) may not open /dev/kvm. Join the group $group and log in again:" \
        "sudo usermod -aG $group $(id -un)"
    fi
  fi
}

# ---- stages ----------------------------------------------------------------------------------------

logs=$top/build/logs

# quietly NAME COMMAND...: runs it with its output at a terminal, else in a log that is shown only
# where the command fails.
quietly() {
  local name=$1
  shift
  if [ -t 1 ]; then
    "$@"
    return
  fi
  mkdir -p "$logs"
  "$@" >"$logs/$name.log" 2>&1 || { tail -n 150 "$logs/$name.log" >&2; return 1; }
}

# build PRESET [OPTION...]: configures it, and builds it with these options of cmake --build.
build() {
  local preset=$1
  shift
  export CCACHE_DIR=${CCACHE_DIR:-$cache/ccache} CCACHE_BASEDIR=$top CCACHE_NOHASHDIR=1
  cd "$top" || return 1
  quietly "$preset-configure" cmake --preset "$preset" &&
    quietly "$preset-build" cmake --build --preset "$preset" -j "$cores" "$@"
}
