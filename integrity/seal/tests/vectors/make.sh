#!/bin/sh
# Makes every file beside it but seal.json and policy.pol: keys, certificates and signatures, all by OpenSSL 3.
# The keys are for these tests and sign nothing else. Valid for 100 years from the day this ran; tests bring
# their own clock. usage: ./make.sh
set -eu
cd "$(dirname "$0")"
key() { # NAME rsa|p256|p384
    case $2 in
        rsa) openssl genpkey -quiet -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out "$1.key" ;;
        *) openssl genpkey -quiet -algorithm EC -pkeyopt "ec_paramgen_curve:P-${2#p}" -out "$1.key" ;;
    esac 2>/dev/null
}
cert() { # NAME ISSUER EXTENSIONS…: signed by ISSUER, by itself where that is the same
    name=$1 issuer=$2; shift 2; printf '%s\n' "$@" >ext
    openssl req -new -key "$name.key" -subj "/O=Hallmark test/CN=$name" -out req
    if [ "$name" = "$issuer" ]; then set -- -key "$name.key"; else set -- -CA "$issuer.pem" -CAkey "$issuer.key"; fi
    openssl x509 -req -in req -days 36500 -sha256 -extfile ext "$@" -out "$name.pem" 2>/dev/null
    rm req ext
}
CA='basicConstraints=critical,CA:TRUE' SIGN='keyUsage=critical,digitalSignature'
ISSUE='keyUsage=critical,keyCertSign' ID='subjectKeyIdentifier=hash'
for name in ca:rsa leaf:rsa other:rsa stranger:rsa p256:p256 p384:p384 middle:p256 deep:rsa \
    sub:p256 under:p256 noca:rsa bynoca:rsa cipher:rsa tls:rsa critical:rsa small:rsa; do key "${name%:*}" "${name#*:}"; done
openssl genpkey -quiet -algorithm RSA -pkeyopt rsa_keygen_bits:1024 -out small.key 2>/dev/null
cert ca ca "$CA" "$ISSUE" "$ID"
cert leaf ca "$SIGN" "$ID"
cert other ca "$SIGN" "$ID" 'extendedKeyUsage=codeSigning'
cert stranger stranger "$SIGN" "$ID"                    # self-signed, in no keyring
cert p256 ca "$SIGN" "$ID"
cert p384 ca "$SIGN" "$ID"
cert middle ca 'basicConstraints=critical,CA:TRUE,pathlen:0' "$ISSUE" "$ID"
cert sub middle "$CA" "$ISSUE" "$ID"               # beneath a CA whose path length is 0
cert under sub "$SIGN" "$ID"
cert deep middle "$SIGN" "$ID"                          # leaf, issued by an intermediate
cert noca ca 'basicConstraints=CA:FALSE' "$ISSUE"       # issues without being a CA
cert bynoca noca "$SIGN"
cert cipher ca 'keyUsage=critical,keyEncipherment'
cert tls ca "$SIGN" 'extendedKeyUsage=serverAuth'
cert critical ca "$SIGN" '1.2.3.4=critical,ASN1:NULL'
cert small ca "$SIGN"
cat deep.pem middle.pem >deep-chain.pem; cat middle.pem sub.pem >chain
printf %s 7f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08 >roothash
smime() { signer=$1 in=$2 out=$3; shift 3
    openssl smime -sign -binary -outform DER -signer "$signer.pem" -inkey "$signer.key" -in "$in" -out "$out" "$@"; }
for name in leaf other stranger p256 p384 noca cipher tls critical small; do smime $name seal.json seal.$name.p7s -noattr; done
smime deep seal.json seal.deep.p7s -noattr -certfile middle.pem
smime deep seal.json seal.deep-alone.p7s -noattr
smime under seal.json seal.under.p7s -noattr -certfile chain; rm chain
smime bynoca seal.json seal.bynoca.p7s -noattr -certfile noca.pem
for name in leaf p256 other stranger; do smime $name roothash roothash.$name.p7s -noattr -nocerts; done
printf %s 7F86D081884C7D659A2FEAA0C55AD015A3BF4F1B2B0B822CD15D6C15B0F00A08 >capitals
smime leaf capitals roothash.capitals.p7s -noattr -nocerts; rm capitals
smime leaf policy.pol policy.leaf.p7b -noattr -nocerts -nodetach
smime leaf seal.json seal.embedded.p7s -noattr -nodetach
smime leaf seal.json seal.attributes.p7s
smime leaf seal.json seal.two-signers.p7s -noattr -signer other.pem -inkey other.key
smime leaf seal.json seal.sha512.p7s -noattr -md sha512
openssl cms -sign -keyid -noattr -binary -outform DER -signer leaf.pem -inkey leaf.key -in seal.json \
    -out seal.keyid.p7s
openssl cms -sign -noattr -binary -outform DER -signer leaf.pem -inkey leaf.key -keyopt rsa_padding_mode:pss \
    -in seal.json -out seal.pss.p7s
for name in ca middle sub under noca bynoca cipher tls critical small; do rm $name.key; done
