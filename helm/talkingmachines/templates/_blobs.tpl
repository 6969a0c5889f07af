{{/* Where the gateway keeps pictures: a bucket, or a claim that is given or made. */}}

{{- define "tm.blobsClaim" -}}
{{- $claim := .Values.gateway.blobs.claim -}}
{{- if $claim.name -}}{{ $claim.name }}{{- else if $claim.create -}}{{ include "tm.fullname" . }}-blobs{{- end -}}
{{- end -}}

{{- define "tm.blobs" -}}
{{- if include "tm.blobsClaim" . -}}
file:///var/lib/talkingmachines
{{- else -}}
{{- required "gateway.blobs: give a url (s3://..., gs://...) or a claim" .Values.gateway.blobs.url -}}
{{- end -}}
{{- end -}}
