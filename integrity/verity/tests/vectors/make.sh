#!/bin/sh
# Makes volumes.tsv and files.tsv from the reference tools. Data of n bytes is `seq 1 99999999 | head -c n`.
# usage: make.sh, in this folder; needs cryptsetup-bin and fsverity
set -e
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
uuid=00112233-4455-6677-8899-aabbccddeeff
veritysetup --version > tools.txt; fsverity --version >> tools.txt
salt32=$(seq 100 131 | while read -r n; do printf %02x "$n"; done)
salt256=$(seq 0 255 | while read -r n; do printf %02x "$n"; done)
: > volumes.tsv
for blocks in 1 2 3 127 128 129 256 257 16384 16385; do
  seq 1 99999999 | head -c $((blocks * 4096)) > "$tmp/data"
  for salt in - 00 "$salt32" "$salt256"; do
    rm -f "$tmp/hash"
    root=$(veritysetup format --uuid=$uuid --salt="$salt" "$tmp/data" "$tmp/hash" | sed -n 's/^Root hash:[[:space:]]*//p')
    printf '%s\t%s\t%s\t%s\n' $blocks "$salt" "$root" "$(sha256sum < "$tmp/hash" | cut -c1-64)" >> volumes.tsv
  done
done
: > files.tsv
for len in 0 1 4095 4096 4097 8192 524288 524289 1000000; do
  seq 1 99999999 | head -c $len > "$tmp/file"
  printf '%s\t%s\n' $len "$(fsverity digest --compact "$tmp/file")" >> files.tsv
done
