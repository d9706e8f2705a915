#!/bin/sh
# Answers as crt.sh does, from files: ?q=… lists all certificates as JSON, ?d=ID gives one as PEM.
list() {
    printf '['
    for file in /run/crtsh/*.pem; do
        id=${file##*/} id=${id%.pem}
        date() { openssl x509 -in "$file" -noout "-$1" -dateopt iso_8601 | sed 's/.*=//; s/ /T/; s/Z//'; }
        [ "$id" = "$(ls /run/crtsh | head -n 1 | sed 's/\.pem//')" ] || printf ','
        printf '{"issuer_ca_id":1,"issuer_name":"CN=bench","common_name":"*.apps.test","name_value":"*.apps.test","id":%s,' "$id"
        printf '"entry_timestamp":"%s","not_before":"%s","not_after":"%s","serial_number":"%s","result_count":1}' \
            "$(date startdate)" "$(date startdate)" "$(date enddate)" "$(openssl x509 -in "$file" -noout -serial | sed 's/serial=//')"
    done
    printf ']\n'
}
case $QUERY_STRING in
d=*) printf 'Content-Type: application/pkix-cert\r\n\r\n' && cat "/run/crtsh/${QUERY_STRING#d=}.pem" ;;
*) printf 'Content-Type: application/json\r\n\r\n' && list ;;
esac
