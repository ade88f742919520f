#!/bin/sh
# Mints a development CA and a leaf certificate for the sprites of one domain. For development only: in
# production, bring certificates from a real CA (config/gateway.example.toml, [tls]).
#
#   certs/mint.sh DIRECTORY [DOMAIN]
#
# Writes ca.pem, ca.key, leaf.pem and leaf.key into DIRECTORY. What is there and still valid for a week
# is kept, so that a CA that was trusted once stays trusted.
set -eu

if [ $# -lt 1 ]; then
    sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
    exit 64
fi
dir=$1
domain=${2:-sprites.localhost}
week=604800

command -v openssl >/dev/null || {
    echo "certs/mint.sh: openssl is missing; install it (apt-get install openssl)" >&2
    exit 69
}
umask 077
mkdir -p "$dir"

valid() { # FILE
    [ -s "$1" ] && openssl x509 -in "$1" -noout -checkend "$week" >/dev/null 2>&1
}

if ! valid "$dir/ca.pem" || [ ! -s "$dir/ca.key" ]; then
    openssl ecparam -name prime256v1 -genkey -noout -out "$dir/ca.key"
    openssl req -x509 -new -key "$dir/ca.key" -sha256 -days 825 -out "$dir/ca.pem" \
        -subj "/CN=Sprites development CA" \
        -addext "basicConstraints=critical,CA:TRUE,pathlen:0" \
        -addext "keyUsage=critical,keyCertSign,cRLSign" \
        -addext "nameConstraints=critical,permitted;DNS:$domain,permitted;DNS:localhost,permitted;IP:127.0.0.0/255.0.0.0,permitted;IP:0:0:0:0:0:0:0:1/ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
    rm -f "$dir/leaf.pem"
fi

if ! valid "$dir/leaf.pem" || [ ! -s "$dir/leaf.key" ] ||
    ! openssl x509 -in "$dir/leaf.pem" -noout -ext subjectAltName | grep -q "DNS:\*\.$domain"; then
    openssl ecparam -name prime256v1 -genkey -noout -out "$dir/leaf.key"
    extensions=$(mktemp)
    trap 'rm -f "$extensions"' EXIT
    # A wildcard covers one label, which is all that a sprite's host name adds to the domain.
    cat >"$extensions" <<EOF
basicConstraints=critical,CA:FALSE
keyUsage=critical,digitalSignature
extendedKeyUsage=serverAuth
subjectAltName=DNS:*.$domain,DNS:$domain,DNS:localhost,IP:127.0.0.1,IP:::1
EOF
    openssl req -new -key "$dir/leaf.key" -subj "/CN=$domain" |
        openssl x509 -req -CA "$dir/ca.pem" -CAkey "$dir/ca.key" -CAcreateserial -sha256 -days 397 \
            -extfile "$extensions" -out "$dir/leaf.pem" 2>/dev/null
fi
echo "$dir/ca.pem"
