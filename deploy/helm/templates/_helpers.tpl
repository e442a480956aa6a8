{{- define "mesh.namespace" -}}
{{- if .Values.namespace -}}
{{ .Values.namespace }}
{{- else if eq .Release.Namespace "default" -}}
mesh-system
{{- else -}}
{{ .Release.Namespace }}
{{- end -}}
{{- end -}}

{{- define "mesh.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "mesh.labels" -}}
app.kubernetes.io/part-of: mesh
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end -}}

{{- define "mesh.address" -}}
{{- if contains ":" .Values.listenAddress -}}[{{ .Values.listenAddress }}]{{- else -}}{{ .Values.listenAddress }}{{- end -}}
{{- end -}}
