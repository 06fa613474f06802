//! Networks and ports, by CNI.

use super::{Use, same};

pub(super) const USES: &[Use] = &[
    same("net none: loopback alone", "once $ONE ip -o link | wc -l", "1"),
    same(
        "net host: the host's interfaces",
        "[ $(run --rm --net host $ONE ip -o link | wc -l) = $(ip -o link | wc -l) ]; echo $?",
        "0",
    ),
    same(
        "net bridge: an address, and the gateway answers",
        "run --rm $ONE sh -c 'ip -4 -o addr show eth0 | wc -l; ping -c 1 -W 5 10.4.0.1 >/dev/null; echo $?'",
        "1\n0",
    ),
    same(
        "net bridge: a default route and a resolver",
        "run --rm --dns 10.9.8.7 $ONE sh -c 'ip route | grep -c default; cat /etc/resolv.conf | grep nameserver'",
        "1\nnameserver 10.9.8.7",
    ),
    same(
        "-p: a page from the host's port",
        "run -d --name aa -p 127.0.0.1:18080:8080 $NGINX >/dev/null
         until_is 'hello from a sealed nginx' busybox wget -q -O - http://127.0.0.1:18080/; echo $?; nerdctl port aa",
        "0\n8080/tcp -> 127.0.0.1:18080",
    ),
    same(
        "-p: two ports, one udp",
        "run -d --name aa -p 18081:81 -p 18082:82/udp $ONE sleep 60 >/dev/null; nerdctl port aa | sort; nerdctl port aa 81",
        "81/tcp -> 0.0.0.0:18081\n82/udp -> 0.0.0.0:18082\n0.0.0.0:18081",
    ),
    same(
        "-p: a port that is taken",
        "run -d --name aa -p 18083:80 $ONE sleep 60 >/dev/null; run -d --name bb -p 18083:80 $ONE sleep 60 >/dev/null 2>&1; [ $? -ne 0 ]; echo $?",
        "0",
    ),
    same(
        "net bridge: one container reaches another by address",
        "run -d --name aa $NGINX >/dev/null; ip=$(nerdctl inspect --format '{{.NetworkSettings.IPAddress}}' aa)
         until_is 'hello from a sealed nginx' run --rm $ONE wget -q -O - http://$ip:8080/; echo $?",
        "0",
    ),
    same(
        "network create: one container reaches another by name",
        "nerdctl network create n1 >/dev/null; run -d --name aa --net n1 $NGINX >/dev/null
         until_is 'hello from a sealed nginx' run --rm --net n1 $ONE wget -q -O - http://aa:8080/; echo $?
         nerdctl rm -f aa >/dev/null; nerdctl network rm n1",
        "0\nn1",
    ),
    same(
        "network create --subnet, --gateway; inspect, ls, rm",
        "nerdctl network create --subnet 10.77.0.0/24 --gateway 10.77.0.9 n1 >/dev/null
         nerdctl network inspect --format '{{range .IPAM.Config}}{{.Subnet}} {{.Gateway}}{{end}}' n1
         nerdctl network ls --format '{{.Name}}' | grep -x n1; nerdctl network rm n1; nerdctl network ls --format '{{.Name}}' | grep -c -x n1",
        "10.77.0.0/24 10.77.0.9\nn1\nn1\n0\nexit status: 1",
    ),
    same(
        "run --ip, --mac-address",
        "nerdctl network create --subnet 10.78.0.0/24 n1 >/dev/null
         run --rm --net n1 --ip 10.78.0.77 --mac-address 02:11:22:33:44:55 $ONE sh -c 'ip -4 -o addr show eth0 | grep -o 10.78.0.77; cat /sys/class/net/eth0/address'
         nerdctl network rm n1",
        "10.78.0.77\n02:11:22:33:44:55\nn1",
    ),
    same(
        "run --net twice: two interfaces",
        "nerdctl network create m1 >/dev/null; nerdctl network create n1 >/dev/null
         run --rm --net m1 --net n1 $ONE sh -c 'ip -4 -o addr show | grep -c eth'; nerdctl network rm m1 n1",
        "2\nm1\nn1",
    ),
    same(
        "net container: the other's interfaces",
        "run -d --name aa $NGINX >/dev/null
         until_is 'hello from a sealed nginx' run --rm --net container:aa $ONE wget -q -O - http://127.0.0.1:8080/; echo $?",
        "0",
    ),
    same(
        "run --hostname, --add-host",
        "once --hostname h1 $ONE hostname; run --rm --add-host other:10.1.2.3 $ONE grep -o ^10.1.2.3 /etc/hosts",
        "h1\n10.1.2.3",
    ),
    same(
        "network create --subnet: five addresses serve eight runs",
        "nerdctl network create --subnet 10.79.0.0/29 n1 >/dev/null; for i in $(seq 8); do run --rm --net n1 $ONE true || echo $i; done
         nerdctl network rm n1",
        "n1",
    ),
];
