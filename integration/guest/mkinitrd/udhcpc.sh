#!/bin/sh
# Run by udhcpc (busybox) with what the lease says in its environment. Of several
# interfaces each adds its name servers and its domain.
case $1 in
deconfig)
	ip link set "$interface" up
	;;
bound | renew)
	ip addr add "$ip/$mask" dev "$interface"
	[ -z "$router" ] || ip route add default via "${router%% *}" dev "$interface"
	[ -z "$hostname" ] || hostname "$hostname"
	echo "$domain" >"/run/domain.$interface"
	for server in $dns; do
		echo "nameserver $server"
	done >"/run/servers.$interface"
	{
		echo search $(cat /run/domain.*)
		cat /run/servers.*
	} >/etc/resolv.conf
	echo "address=$ip/$mask gateway=${router:-none} dns=${dns:-none}" >"/run/lease.$interface"
	;;
esac
