#!/bin/sh
# Run by udhcpc (busybox) with what the lease says in its environment.
case $1 in
deconfig)
	ip link set "$interface" up
	;;
bound | renew)
	ip addr add "$ip/$mask" dev "$interface"
	[ -z "$router" ] || ip route add default via "${router%% *}" dev "$interface"
	for server in $dns; do
		echo "nameserver $server"
	done >/etc/resolv.conf
	echo "address=$ip/$mask gateway=${router:-none} dns=${dns:-none}" >"/run/lease.$interface"
	;;
esac
