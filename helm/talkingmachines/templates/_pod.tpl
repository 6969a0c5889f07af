{{/* What every pod of ours has: the restricted profile, spreading, and mounted secrets. */}}

{{/* (root, part) → fields of a pod's spec */}}
{{- define "tm.pod" -}}
{{- $root := index . 0 -}}{{- $part := index . 1 -}}
serviceAccountName: {{ include "tm.serviceAccount" . }}
automountServiceAccountToken: false
# Kubernetes would else put TM_..._PORT=tcp://... into the environment, which settings refuse.
enableServiceLinks: false
{{- with $root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{ include "tm.podSecurity" . }}
{{- end -}}

{{- define "tm.podSecurity" -}}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- end -}}

{{- define "tm.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end -}}

{{/* (root, part, placement) → where a Deployment's pods go: apart from each other if possible */}}
{{- define "tm.placement" -}}
{{- $root := index . 0 -}}{{- $part := index . 1 -}}{{- $placement := index . 2 -}}
topologySpreadConstraints:
  {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "tm.selector" (list $root $part) | nindent 8 }}
  {{- end }}
{{- with $placement.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $placement.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $placement.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{/* (name, secret, items or nil) → a volume of a Secret; only the pod's group can read it */}}
{{- define "tm.secretVolume" -}}
- name: {{ index . 0 }}
  secret:
    secretName: {{ index . 1 }}
    defaultMode: 0440
    {{- with index . 2 }}
    items:
      {{- range $key, $path := . }}
      - key: {{ $key }}
        path: {{ $path }}
      {{- end }}
    {{- end }}
{{- end -}}

{{/* part's settings → Listen.drain_seconds, that pods may take to stop */}}
{{- define "tm.drain" -}}
{{- .settings.listen.drain_seconds | int -}}
{{- end -}}
