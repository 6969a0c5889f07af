{{/* Settings as environment variables: nested names are joined by two underscores. */}}

{{/* (prefix, map) → list of env entries; numbers and lists as JSON, because Helm holds integers as floats */}}
{{- define "tm.env" -}}
{{- $prefix := index . 0 -}}
{{- range $name, $value := index . 1 }}
{{- $variable := printf "%s%s" $prefix (upper $name) -}}
{{- if kindIs "map" $value }}
{{- include "tm.env" (list (printf "%s__" $variable) $value) }}
{{- else }}
- name: {{ $variable }}
  value: {{ kindIs "string" $value | ternary $value (toJson $value) | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/* (variable, secret name, key) → one env entry whose value Kubernetes takes from a Secret */}}
{{- define "tm.env.secret" -}}
- name: {{ index . 0 }}
  valueFrom:
    secretKeyRef:
      name: {{ index . 1 }}
      key: {{ index . 2 }}
{{- end -}}
